"""`deploy`: how a release is proved."""

from clip_core.config.section import Count, Positive, Section


class Deploy(Section):
    num_golden: Count  # golden queries sent to a release before it serves
    num_timed: Count  # requests behind the latencies
    max_feature_difference: Positive

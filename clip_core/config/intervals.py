"""`intervals`: how often a training speaks, is saved and measured: no stage's params name it, for it decides no bit."""

from clip_core.config.section import Count, Section


class Interval(Section):
    """One training's, in steps; the last step counts always."""

    log_every: Count
    save_every: Count  # a checkpoint


class StageInterval(Interval):
    evaluate_every: Count  # on the validation split


class Intervals(Section):
    """Those of all trainings."""

    text_start: Interval
    warm_start: Interval
    stage1: StageInterval
    stage2: StageInterval

"""`deploy`: how a release is proved, and what its Triton takes of a machine."""

from typing import Literal

from clip_core.config.section import Count, Positive, Section


class Triton(Section):
    towers: Count  # copies of each tower
    threads: Count  # of a tower on the CPU
    preparers: Count  # processes that prepare texts, and as many that prepare pictures
    tensorrt: Literal["fp32", "fp16"] | None  # the precision in which a GPU server runs the towers; null: onnxruntime


class Deploy(Section):
    num_golden: Count  # golden queries sent to a release before it serves
    num_timed: Count  # requests behind the latencies
    max_feature_difference: Positive
    triton: Triton

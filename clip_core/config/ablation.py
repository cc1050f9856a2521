"""`ablation`: what its arms do not share with stage 1 and stage 2."""

from typing import Annotated

from pydantic import AfterValidator, Field

from clip_core.config.section import Section, Seed
from clip_core.config.training import PeakLr


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds must be different ones")
    return seeds


# one seed has no spread, and so no interval
Seeds = Annotated[tuple[Seed, ...], Field(min_length=2), AfterValidator(_different)]


class Ablation(Section):
    seeds: Seeds  # each with its own English warm start
    scratch_peak_lr: PeakLr
    direct_peak_lr: PeakLr  # of one stage without freezing

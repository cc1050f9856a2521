"""`gateway`: what it remembers of its answers, and when it gives up a canary. No stage reads it."""

from typing import Annotated

from pydantic import Field

from clip_core.config.section import Section, Share


class CanaryLimits(Section):
    window: Annotated[int, Field(ge=20)]  # questions to one model that are judged together
    max_more_errors: Share  # of the window, above what the public release has
    max_more_empty: Share  # answers, likewise
    max_slowdown: Annotated[float, Field(ge=1)]  # times the public release's p99


class Gateway(Section):
    kept_answers: Annotated[int, Field(ge=0)]  # to texts, in memory; 0: none
    canary: CanaryLimits

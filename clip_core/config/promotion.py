"""`promotion`: what a release must show to take the place of the one that serves. No stage reads it."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from clip_core.config.gates import RECALLS
from clip_core.config.section import Count, Name, Section, Share, resembling

MAIN_METRICS = tuple(f"{group}.{recall}" for group in ("seen", "unseen", "all") for recall in RECALLS)


def _main_metric(name: str) -> str:
    if name not in MAIN_METRICS:
        raise ValueError(
            f"no metric of retrieval{resembling(name, MAIN_METRICS)}; allowed are {', '.join(MAIN_METRICS)}"
        )
    return name


class Promotion(Section):
    metric: Annotated[str, AfterValidator(_main_metric)]  # of the test
    equal: Literal["refuse", "promote"]  # what becomes of one that can not be told apart from what serves
    max_slice_loss: dict[Literal["length", "script", "category"], Share]  # of mean recall, text to image
    min_queries: Count  # of a slice that decides
    max_slowdown: Annotated[float, Field(ge=1)]  # of the median time for a text and a picture, on a CPU
    licences: tuple[Name, ...] | None  # that training data may have; null: any
    approval: bool  # true: what is promoted waits for `make rollout`

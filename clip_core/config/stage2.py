"""`stage2`: a training of everything, and what only that can have."""

from typing import Annotated

from pydantic import Field

from clip_core.config.section import Count, Section
from clip_core.config.training import Training


class Lora(Section):
    """Low-rank adapters instead of all weights (Hu et al. 2021)."""

    rank: Count
    alpha: Count  # the adapters count alpha / rank times
    dropout: Annotated[float, Field(ge=0, lt=1)]  # of what goes into an adapter


class Stage2(Training):
    """Both towers train."""

    patch_dropout: Annotated[float, Field(ge=0, lt=1)]  # the share of a picture's patches left out in a step (FLIP)
    lora: Lora | None  # null: all weights train

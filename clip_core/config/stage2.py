"""`stage2`: a training of everything, and what only that can have."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clip_core.config.section import Count, Inside, Name, Positive, Section
from clip_core.config.training import Training


class Lora(Section):
    """Low-rank adapters instead of all weights (Hu et al. 2021)."""

    rank: Count
    alpha: Count  # the adapters count alpha / rank times
    dropout: Annotated[float, Field(ge=0, lt=1)]  # of what goes into an adapter


class Distill(Section):
    """A frozen teacher, whose features those of the model come near."""

    weights: Inside  # a weights folder, named relative to `stage2.path`
    images: bool  # which sides it teaches
    texts: bool
    loss: Literal["cosine", "relation"]  # of each row with the teacher's; or of each row's softmax over the batch
    weight: Positive  # of this loss beside `loss`, which counts once

    @model_validator(mode="after")
    def _something_is_taught(self) -> "Distill":
        if not (self.images or self.texts):
            raise ValueError("images and texts are both false: the teacher teaches one of them at least")
        if self.loss == "relation" and not (self.images and self.texts):
            raise ValueError("loss 'relation' is between pictures and texts: images and texts must both be true")
        return self


class Stage2(Training):
    """Both towers train."""

    patch_dropout: Annotated[float, Field(ge=0, lt=1)]  # the share of a picture's patches left out in a step (FLIP)
    lora: Lora | None  # null: all weights train
    path: Name  # the folder in which teachers lie
    distill: Distill | None  # null: no teacher

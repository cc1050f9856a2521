"""`init`: where stage 1 starts."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from clip_core.config.section import Inside, Name, Section
from clip_core.config.training import Training


class AnyInit(Section):
    """Where stage 1 starts. Files are named relative to `path`, whose contents decide whether init has to run again."""

    path: Name  # a folder


class WarmStart(AnyInit):
    """The image tower trained here as an English CLIP, as in the paper; the text side is that of `text_start`."""

    from_: Annotated[Literal["warm_start"], Field(alias="from")]
    warm_start: Training

    @field_validator("warm_start")
    @classmethod
    def _keeps_the_last_weights(cls, warm_start: Training) -> Training:
        if warm_start.keep != "last":
            raise ValueError("keep must be `last`: nobody measures an English recall")
        return warm_start


class FromTowers(AnyInit):
    """The paper's start: an English CLIP's image side, a Chinese BERT, a random text projection."""

    from_: Annotated[Literal["towers"], Field(alias="from")]
    image_tower: Inside  # a file or folder of timm, open_clip or transformers
    bert_folder: Inside


class FromWeights(AnyInit):
    """Weights of a Chinese CLIP: a released file or folder, or a weights folder made here."""

    from_: Annotated[Literal["weights"], Field(alias="from")]
    weights: Inside
    vocabulary: Inside | None  # vocab.txt, for a released file that has none beside it


Init = Annotated[WarmStart | FromTowers | FromWeights, Field(discriminator="from_")]

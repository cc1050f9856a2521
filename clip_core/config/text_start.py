"""`text_start`: what the text tower starts from where `init.from` is `warm_start`."""

from typing import Annotated, Literal

from pydantic import Field

from clip_core.config.section import Count, Inside, Name, Section
from clip_core.config.training import Optimizer, Schedule


class AnyTextStart(Section):
    path: Name  # the folder for files from elsewhere; when it changes, text_start runs again


class Random(AnyTextStart):
    """BERT's architecture and nothing learnt."""

    from_: Annotated[Literal["random"], Field(alias="from")]


class FromBert(AnyTextStart):
    """A local BERT."""

    from_: Annotated[Literal["bert_folder"], Field(alias="from")]
    bert_folder: Inside


class FromTeacher(AnyTextStart):
    """General words, as the teacher in `path` embeds them, learnt before the first picture."""

    from_: Annotated[Literal["teacher"], Field(alias="from")]
    num_words: Count  # the teacher's commonest
    schedule: Schedule
    optimizer: Optimizer
    global_batch: Annotated[int, Field(ge=2)]


TextStart = Annotated[Random | FromBert | FromTeacher, Field(discriminator="from_")]

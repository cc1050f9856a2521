"""`pack`: the size of an LMDB file, and of the training pictures in it."""

from typing import Annotated

from pydantic import Field

from clip_core.config.section import Count, Section


class Resize(Section):
    """What training pictures become: JPEG whose shorter side is no longer than this; smaller ones stay as they are."""

    short_side: Count  # pixels; a bit more than the model's image_size, so that a random crop finds enough
    quality: Annotated[int, Field(ge=50, le=100)]  # of the JPEG


class Pack(Section):
    shard_mib: Count  # of pictures in one LMDB file
    resize: Resize | None  # null: the pictures' own bytes; valid and test always keep theirs

"""`gateway`: what it remembers of its answers. No stage reads it."""

from typing import Annotated

from pydantic import Field

from clip_core.config.section import Section


class Gateway(Section):
    kept_answers: Annotated[int, Field(ge=0)]  # to texts, in memory; 0: none

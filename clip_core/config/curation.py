"""`curate`: which training pairs leave, each by a rule that can be switched off."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from clip_core.config.section import Count, Inside, Name, Section


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


Pattern = Annotated[Name, AfterValidator(_compiles)]


class Length(Section):
    """Of a caption, in characters."""

    least: Count
    most: Count

    @model_validator(mode="after")
    def _some_length_is_allowed(self) -> "Length":
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) must be at most most ({self.most})")
        return self


class Score(Section):
    """The cosine of a picture's and its caption's features."""

    weights: Inside  # a weights folder
    least: Annotated[float, Field(ge=-1, le=1)]


class Rules(Section):
    """In the order in which they are asked: a pair leaves under the first that takes it. null or false: off."""

    language: Annotated[tuple[Literal["zh", "en"], ...], Field(min_length=1)] | None
    caption_length: Length | None
    aspect: Annotated[float, Field(ge=1)] | None  # at most: longer side / shorter side
    pattern: Literal["default"] | tuple[Pattern, ...] | None  # default: clip_core/data/advertising.txt
    blacklist: Inside | None  # a text file with a word a line
    exact_duplicate: bool
    near_duplicate: bool
    leakage: bool
    score: Score | None
    pairs_per_caption: Count | None
    pairs_per_picture: Count | None


class Curate(Section):
    path: Name  # a folder: what rules name lies in it, and decides whether curate has to run again
    near_duplicate_distance: Annotated[int, Field(ge=0, le=7)]  # bits in which two perceptual hashes may differ
    rules: Rules

"""The report in two languages: both stand in the page, and its switch shows one of them.

Templates say a phrase in English; chinese.toml has the Chinese of it. What it lacks, as names, figures and code, is for
both, and is text, never markup.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Self

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Said:
    """A phrase in both languages, as HTML."""

    english: Markup
    chinese: Markup

    def __html__(self) -> str:
        if self.english == self.chinese:
            return self.english
        return f'<bdi lang="en">{self.english}</bdi><bdi lang="zh">{self.chinese}</bdi>'

    def __add__(self, other: Self) -> "Said":
        return Said(self.english + other.english, self.chinese + other.chinese)


def say(english: str, *places: object) -> Said:
    """The phrase with what stands in its places, a phrase itself or a value, which is escaped."""
    known = phrases()
    pair = (Markup(english), Markup(known[english])) if english in known else (escape(english),) * 2
    filled = [[getattr(place, side, place) for place in places] for side in ("english", "chinese")]
    return Said(*(text.format(*values) if values else text for text, values in zip(pair, filled, strict=True)))


@cache
def phrases() -> dict[str, str]:
    """English -> Chinese; both are ours, so their markup is trusted."""
    return tomllib.loads(files("clip_core.evaluate.report").joinpath("chinese.toml").read_text(encoding="utf-8"))

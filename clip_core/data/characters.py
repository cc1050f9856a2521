"""What kinds of characters captions are made of: Chinese, of one script alone."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

CHINESE, SIMPLIFIED, TRADITIONAL = 1, 2, 4  # bits: a character may be of several kinds
CHINESE_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
SCRIPTS = ("neither", "simplified", "traditional", "both")


@dataclass(frozen=True)
class Characters:
    """How many characters of each kind each caption has."""

    length: np.ndarray  # (captions,), as all of these
    chinese: np.ndarray
    simplified: np.ndarray  # that are written so in simplified Chinese alone
    traditional: np.ndarray

    def script(self) -> np.ndarray:
        """Which script each caption is in, one of SCRIPTS: most short captions have characters of neither alone."""
        return np.array(SCRIPTS, dtype=object)[(self.simplified > 0) + 2 * (self.traditional > 0)]


def characters_of(captions: Sequence[str]) -> Characters:
    """Counts the kinds of characters in all captions at once."""
    length = np.fromiter(map(len, captions), np.int64, len(captions))
    # a lone surrogate is counted, too: whoever made the caption is told, not this function
    codes = np.frombuffer("".join(captions).encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[codes]
    ends = np.cumsum(length)

    def per_caption(kind: int) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum((kinds & kind) > 0)])
        return before[ends] - before[ends - length]

    return Characters(length, *map(per_caption, (CHINESE, SIMPLIFIED, TRADITIONAL)))


@cache
def _kinds() -> np.ndarray:
    """The kinds of each code point."""
    kinds = np.zeros(0x110000, np.uint8)
    for first, last in CHINESE_RANGES:
        kinds[first : last + 1] |= CHINESE
    table = tomllib.loads(files("clip_core.data").joinpath("one_script.toml").read_text(encoding="utf-8"))
    for bit, script in ((SIMPLIFIED, "simplified"), (TRADITIONAL, "traditional")):
        kinds[[ord(character) for line in table[script].split() for character in line]] |= bit
    return kinds

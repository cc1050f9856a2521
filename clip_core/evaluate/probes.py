"""Robustness of the text side: the same queries in the other script, with typing mistakes, negated.

A probe changes the queries alone, so it costs one pass of the text tower over at most MAX_QUERIES texts. For a negated
query the pictures of what it denies count as found: a model that hears the "no" finds them no longer. The paper found
that its classes are found worse when named by what they are not (KITTI: 49.9 with "others", 25.9 with "no cars").
"""

import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from zlib import crc32

import numpy as np

from clip_core.config.evaluation import Evaluate
from clip_core.evaluate.benchmark import Benchmark, questions
from clip_core.evaluate.bootstrap import compared, resampled_means, units_of
from clip_core.evaluate.embed import Features
from clip_core.evaluate.retrieval import AT, Encode, ranks

MAX_QUERIES = 1000  # of each probe, at equal steps


def probes(encode: Encode, features: Features, benchmark: Benchmark, params: Evaluate, seed: int) -> list[dict]:
    """Each probe with its queries' mean recall among all pictures, before and after, and the difference's interval."""
    asked = questions(benchmark, "all")
    told = []
    for name, change in PROBES.items():
        changed = [change(benchmark.texts[text]) for text in asked.asking_texts]
        applies = np.array([i for i, text in enumerate(changed) if text is not None], dtype=np.int64)
        if not len(applies):
            continue
        rows = applies[:: -(-len(applies) // MAX_QUERIES)]
        texts, right = asked.asking_texts[rows], [asked.right_images[row] for row in rows]
        before = _mean_recall(features.texts[texts], features.images, right)
        after = _mean_recall(encode([str(changed[row]) for row in rows]), features.images, right)
        differences = resampled_means((after - before)[:, None], units_of(right), params.num_bootstrap, seed)[:, 0]
        told.append(
            {
                "name": name,
                "num_queries": len(rows),
                "applies_to": len(applies) / len(changed),
                "example": [benchmark.texts[texts[0]], changed[rows[0]]],
                "before": float(before.mean()),
                "after": float(after.mean()),
                "difference": compared(float((after - before).mean()), differences, params.confidence),
            }
        )
    return told


def in_other_script(text: str) -> str | None:
    """Simplified characters as traditional ones, or the reverse where there are none."""
    to_traditional, to_simplified = _scripts()
    changed = text.translate(to_traditional)
    changed = text.translate(to_simplified) if changed == text else changed
    return None if changed == text else changed


def with_two_characters_swapped(text: str) -> str | None:
    """Two neighbours that differ change places, which ones the text itself decides."""
    places = [i for i, (one, other) in enumerate(pairwise(text)) if one != other]
    if not places:
        return None
    at = places[crc32(text.encode()) % len(places)]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def with_a_character_missing(text: str) -> str | None:
    """Which one the text itself decides; of one or two characters nothing would be left to know it by."""
    at = crc32(text.encode()) % len(text)
    return text[:at] + text[at + 1 :] if len(text) > 2 else None


PROBES: dict[str, Callable[[str], str | None]] = {
    "other_script": in_other_script,
    "two_characters_swapped": with_two_characters_swapped,
    "a_character_missing": with_a_character_missing,
    "negated": "\N{CJK UNIFIED IDEOGRAPH-6CA1}\N{CJK UNIFIED IDEOGRAPH-6709}{}".format,
}


def _mean_recall(texts: np.ndarray, images: np.ndarray, right: Sequence[np.ndarray]) -> np.ndarray:
    found = ranks(texts, images, right)
    return np.mean([found <= k for k in AT], axis=0)


@cache
def _scripts() -> tuple[dict[int, str], dict[int, str]]:
    """Simplified -> traditional, traditional -> simplified, for str.translate."""
    table = tomllib.loads(files("clip_core.evaluate").joinpath("other_script.toml").read_text(encoding="utf-8"))
    simplified, traditional = (
        str.maketrans(*("".join(table[script][side].split()) for side in ("from", "to")))
        for script in ("simplified", "traditional")
    )
    return simplified, traditional

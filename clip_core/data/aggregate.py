"""What is known of a shard's rows as a few numbers, which add up over shards."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    Numbers = pd.Series | np.ndarray

NUM_EXAMPLES = 5  # of each rule
NUM_VALUES = 100  # of a column that are told apart: licences and formats are what files say
OTHER = "(others)"
OF_ROWS = ("split", "language", "caption_kind", "licence", "source", "script")
OF_PICTURES = ("mode",)
# Histogram -> where its bins begin; what lies before the first belongs to it, and the last has no end.
EDGES: dict[str, tuple[float, ...]] = {
    "caption_length": (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200),
    "cjk_share": (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    "side": (0, 16, 32, 64, 96, 128, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048, 4096),
    "aspect": (1, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 10),
    "bytes": (0, *(2**power for power in range(7, 26))),
}


@dataclass(frozen=True)
class Aggregate:
    """Sums, counts and histograms over rows; JSON holds all of it."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # what is counted -> value -> how often
    stay: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> rule -> ids that break it and stay
    histograms: dict[str, list[int]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # rule -> rows that break it


def histogram(name: str, values: "Numbers") -> list[int]:
    """How many of the values lie in each bin of EDGES[name]; nulls lie in none."""
    numbers = np.asarray(values, dtype=float)
    numbers = numbers[~np.isnan(numbers)]
    bins = np.searchsorted(EDGES[name], numbers, side="right") - 1
    return np.bincount(bins.clip(min=0), minlength=len(EDGES[name])).tolist()


def counted(values: "pd.Series") -> dict[str, int]:
    """How often each value occurs; of more than NUM_VALUES the rarest together."""
    return _fewer(Counter({str(value): int(n) for value, n in values.value_counts().items()}))


def merged(aggregates: Iterable[Aggregate]) -> Aggregate:
    """All of them as one, in their order; a text or a picture of several shards counts in each."""
    total = Aggregate()
    for one in aggregates:
        for groups, more in ((total.counts, one.counts), (total.stay, one.stay)):
            for name, counts in more.items():
                groups[name] = _fewer(Counter(groups.get(name, {})) + Counter(counts))
        for name, bins in one.histograms.items():
            before = total.histograms.get(name, [0] * len(bins))
            total.histograms[name] = [a + b for a, b in zip(before, bins, strict=True)]
        for name, value in one.sums.items():
            total.sums[name] = total.sums.get(name, 0) + value
        for rule, rows in one.examples.items():
            total.examples[rule] = (total.examples.get(rule, []) + rows)[:NUM_EXAMPLES]
    return total


def _fewer(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts, most frequent first, with at most NUM_VALUES names and OTHER."""
    ordered = sorted(counts.items(), key=lambda item: (item[0] == OTHER, -item[1], item[0]))
    kept = dict(ordered[:NUM_VALUES])
    if others := sum(number for _, number in ordered[NUM_VALUES:]):
        kept[OTHER] = kept.get(OTHER, 0) + others
    return kept

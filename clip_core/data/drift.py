"""How far captions and pictures have drifted from a baseline: the histograms of data that were as they should be."""

import json
from pathlib import Path

import numpy as np

from clip_core.data.aggregate import EDGES, Aggregate, histogram, merged
from clip_core.data.expectations import DRIFTING
from clip_core.errors import UserError
from clip_core.files import atomic_write

LEAST = 1000  # values that a histogram needs: with fewer, chance alone moves its bins

Histograms = dict[str, list[int]]


def population_stability_index(now: list[int], before: list[int]) -> float:
    """The sum over bins of (p - q) ln(p / q), where p and q are their shares now and before.

    Half a value is added to each bin, so that an empty one is not infinitely far.
    """
    p, q = (np.add(counts, 0.5) / np.add(counts, 0.5).sum() for counts in (now, before))
    return float(((p - q) * np.log(p / q)).sum())


def drift_of(histograms: Histograms, baseline: Histograms) -> dict[str, float | None]:
    """The drift of each of DRIFTING; null where there are too few values to tell."""
    return {
        name: population_stability_index(histograms[name], baseline[name]) if sum(histograms[name]) >= LEAST else None
        for name in DRIFTING
    }


def is_enough(histograms: Histograms) -> bool:
    """Whether there are enough values in any of DRIFTING to tell a drift."""
    return any(sum(histograms.get(name, ())) >= LEAST for name in DRIFTING)


def read_baseline(path: Path) -> Histograms:
    """The histograms that `python -m clip_core.data.baseline` wrote; raises UserError where they are others'."""
    renew = f"renew it: python -m clip_core.data.baseline data/valid {path}, or set validate.baseline to null"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        bins = {name: one["counts"] for name, one in found.items()}
        edges = {name: tuple(one["edges"]) for name, one in found.items()}
    except FileNotFoundError:
        raise UserError(f"{path}: no such baseline (validate.baseline in params.yaml); {renew}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a baseline ({error!r}); {renew}") from None
    for name in DRIFTING:
        counts = bins.get(name)
        if edges.get(name) != EDGES[name] or not _are_counts(counts, len(EDGES[name])):
            raise UserError(f"{path}: the histogram of {name} is not one of this version's; {renew}")
    return bins


def write_baseline(valid: Path, path: Path) -> Histograms:
    """Writes the histograms of the clean data in `valid`, a shard at a time."""
    shards = sorted(valid.glob("pairs*.parquet"))
    if not shards:
        raise UserError(f"{valid}: no pair table there. Run the stage that makes it: `dvc repro validate`.")
    histograms = merged(Aggregate(histograms=_histograms(shard)) for shard in shards).histograms
    written = {name: {"edges": list(EDGES[name]), "counts": histograms[name]} for name in DRIFTING}
    atomic_write(path, "{\n" + ",\n".join(f' "{n}": {json.dumps(one)}' for n, one in written.items()) + "\n}\n")
    return histograms


def _histograms(shard: Path) -> Histograms:
    """Of the shard's captions, a row each, and of its pictures, each once."""
    import pyarrow.parquet as pq

    table = pq.read_table(shard, columns=["image_id", "caption", "width", "height", "num_bytes"])
    rows = table.to_pandas()
    pictures = rows.dropna(subset=["image_id"]).drop_duplicates("image_id")
    return {
        "caption_length": histogram("caption_length", rows["caption"].dropna().str.len()),
        "side": histogram("side", np.minimum(pictures["width"], pictures["height"])),
        "bytes": histogram("bytes", pictures["num_bytes"]),
    }


def _are_counts(counts: object, number: int) -> bool:
    return isinstance(counts, list) and len(counts) == number and all(type(n) is int and n >= 0 for n in counts)

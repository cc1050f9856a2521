"""Curation: duplicates and leakage between the splits leave `train`, never `valid` or `test`; each rule is counted."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    CurationRule = Callable[[pd.DataFrame, pd.DataFrame], pd.Series]

CHUNK = 512  # hashes compared with all others at a time
# What makes two captions the same. Concepts that an artwork draws alike may share a keyword and are no duplicates.
TEXT = ["caption", "language", "concept_id"]
MEAN_DIFFERENCE, LARGEST_DIFFERENCE = 3, 32  # of two thumbnails that show the same picture, in colour levels (0-255)


def near_duplicate_groups(fingerprints: "pd.DataFrame", distance: int) -> "pd.Series":
    """A number for each image_id; pictures that look the same have the same one.

    Candidates have perceptual hashes that differ in at most `distance` bits. Hashes see only light and dark, so the
    thumbnails must agree as well: a red circle does not look like a blue one.
    """
    import pandas as pd

    distinct, first, kind = np.unique(
        fingerprints["thumbnail"].to_numpy(dtype="object"), return_index=True, return_inverse=True
    )
    hashes = fingerprints["difference_hash"].to_numpy(dtype=np.uint64)[first]
    thumbnails = np.frombuffer(b"".join(distinct), np.uint8).reshape(len(distinct), -1).astype(np.int16)
    look = np.arange(len(distinct))
    for one, others in near(hashes, distance):
        difference = np.abs(thumbnails[others] - thumbnails[one])
        same = others[(difference.mean(1) <= MEAN_DIFFERENCE) & (difference.max(1) <= LARGEST_DIFFERENCE)]
        for other in same:
            _join(look, one, other)
    roots = np.array([_root(look, one) for one in range(len(look))])
    return pd.Series(roots[kind], index=fingerprints["image_id"])


def near(hashes: np.ndarray, distance: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each position with the later positions whose hash differs in at most `distance` bits, where there are any."""
    order = np.argsort(hashes, kind="stable")
    values, starts = np.unique(hashes[order], return_index=True)
    groups = np.split(order, starts[1:])
    for start in range(0, len(values) if distance else 0, CHUNK):
        bits = np.bitwise_count(values[start : start + CHUNK, None] ^ values[None, start:])  # (chunk, later hashes)
        for one, other in np.argwhere((bits > 0) & (bits <= distance)):
            if other > one:
                for position in groups[start + one]:
                    yield position, groups[start + other]
    for group in groups:
        for position in range(len(group) - 1):
            yield group[position], group[position + 1 :]


def curate(pairs: "pd.DataFrame", looks: "pd.Series", rules: Mapping[str, "CurationRule"]) -> "pd.DataFrame":
    """The pair table with two more columns: `reason`, the rule under which a row leaves (or null), and `seen`.

    Only rows of `train` leave, each under the first rule that takes it. `seen` tells whether the row's concept is still
    in train; it is true where the source has no concepts.
    """
    import pandas as pd

    rows = pairs.assign(look=pairs["image_id"].map(looks))
    held_out = rows[rows["split"] != "train"]
    reason = pd.Series(None, pairs.index, dtype="object")
    for name, leaves in rules.items():
        train = rows[(rows["split"] == "train") & reason.isna()]
        reason[train.index[leaves(train, held_out)]] = name
    in_train = pairs["concept_id"][(pairs["split"] == "train") & reason.isna()].dropna()
    return pairs.assign(reason=reason, seen=pairs["concept_id"].isna() | pairs["concept_id"].isin(in_train))


def repeats_exactly(train: "pd.DataFrame", _held_out: "pd.DataFrame") -> "pd.Series":
    """Rows with the picture's bytes and the caption of an earlier row."""
    return train.duplicated(["image_sha256", *TEXT])


def repeats_nearly(train: "pd.DataFrame", held_out: "pd.DataFrame") -> "pd.Series":
    """Rows with the caption of an earlier row and a picture that looks the same but has other bytes."""
    return train.duplicated(["look", *TEXT]) & ~repeats_exactly(train, held_out)


def leaks(train: "pd.DataFrame", held_out: "pd.DataFrame") -> "pd.Series":
    """Rows whose picture looks like one of valid or test, whatever the captions say."""
    return train["look"].isin(held_out["look"])


RULES = {"exact_duplicate": repeats_exactly, "near_duplicate": repeats_nearly, "leakage": leaks}


def _root(look: np.ndarray, one: int) -> int:
    while look[one] != one:
        look[one] = one = look[look[one]]
    return one


def _join(look: np.ndarray, one: int, other: int) -> None:
    roots = sorted((_root(look, one), _root(look, other)))
    look[roots[1]] = roots[0]

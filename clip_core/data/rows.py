"""What a row of training is, and which rows are of one kind, so that no batch may hold two of them.

An epoch is over rows. A pair of a picture and a sentence is a row: each pair once an epoch, as in the reference. A
picture that only has names and keywords is one row, however many they are; its caption is drawn anew in each step (see
captions.py), for names and keywords are what captions are made of, and no captions.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from clip_core.data.captions import describe
from clip_core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from clip_core.data.store import Store

COLUMNS = ("language", "caption_kind", "caption", "group", "concept_id", "near_duplicate_group")
SHARDS_AT_ONCE = 16  # to count rows in


def rows_of(pairs: "pd.DataFrame", language: str) -> "pd.DataFrame":
    """The rows that `pairs` make in `language`, by picture: a caption or what one is drawn from, and what is shared."""
    import pandas as pd

    pairs = pairs[(pairs["language"] == language).to_numpy(bool)]
    sentences, named = _apart(pairs)
    rows = pd.DataFrame(
        {
            "image": sentences["image_index"],
            "caption": sentences["caption"].astype(object),
            "concept": sentences["concept_id"].fillna(sentences["caption"]),
            "look": sentences["near_duplicate_group"],
            "is_drawn": False,
        }
    )
    if len(named):
        first = named.drop_duplicates("image_index")
        has_concept = first["concept_id"].notna()  # then it alone tells what the picture shows
        described = describe(named)
        more = {
            "image": first["image_index"],
            "caption": pd.Series([described[image] for image in first["image_index"]], first.index, dtype=object),
            "concept": first["concept_id"].fillna(first["caption"]),
            "look": first["near_duplicate_group"].mask(has_concept),
            "is_drawn": True,
        }
        rows = pd.concat([rows, pd.DataFrame(more)])
    return rows.sort_values("image", kind="stable", ignore_index=True)


def kinds_of(rows: "pd.DataFrame") -> np.ndarray:
    """A number from 0 for each row's kind: rows that share a concept, a caption, a picture or a near-duplicate group.

    Who shares with a row that shares with a third is of one kind with that, too. With concepts alone the kinds are
    numbered in the order of the concepts.
    """
    import pandas as pd

    concepts = pd.factorize(rows["concept"], sort=True)[0]
    is_sentence = ~rows["is_drawn"].to_numpy(bool)
    shared = [concepts, pd.factorize(rows["look"])[0]]
    for column in ("caption", "image"):
        numbers = np.full(len(rows), -1)
        numbers[is_sentence] = pd.factorize(rows[column].to_numpy()[is_sentence])[0]
        shared.append(numbers)
    component = components(shared)
    least = np.full(len(rows), len(rows))
    np.minimum.at(least, component, concepts)
    return least[component]


def components(shared: list[np.ndarray]) -> np.ndarray:
    """A number from 0 for each row, the same for rows that have a number in common in one of `shared`; -1 is none.

    Who shares with a row that shares with a third gets the number of that, too.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num_rows = num_nodes = len(shared[0])
    ends = []  # a node a row, a node for each thing that rows can share
    for numbers in shared:
        ends.append(np.where(numbers < 0, -1, num_nodes + numbers))
        num_nodes += int(numbers.max(initial=-1)) + 1
    row, end = np.tile(np.arange(num_rows), len(ends)), np.concatenate(ends)
    row, end = row[end >= 0], end[end >= 0]
    graph = coo_array((np.ones(len(row), bool), (row, end)), shape=(num_nodes, num_nodes))
    _, component = connected_components(graph, directed=False)
    return np.unique(component[:num_rows], return_inverse=True)[1]


def count_rows(store: "Store", language: str) -> tuple[int, ...]:
    """The number of rows that each shard has in `language`; raises UserError where there are none at all."""
    counts, languages = np.zeros(len(store.manifest["shards"]), np.int64), set()
    for numbers, pairs in _narrow(store):
        languages |= set(pairs["language"].dropna().unique())
        sentences, named = _apart(pairs[(pairs["language"] == language).to_numpy(bool)])
        images = np.concatenate([sentences["image_index"], named["image_index"].unique()])
        firsts = [store.manifest["shards"][number]["first"] for number in numbers]
        counts[numbers] = np.bincount(np.searchsorted(firsts, images, side="right") - 1, minlength=len(numbers))
    if not counts.sum():
        raise UserError(
            f"the training pictures have no captions in language {language!r}: set `captions.language` of this "
            f"training to one of {sorted(languages)}"
        )
    return tuple(counts.tolist())


def _narrow(store: "Store") -> Iterator[tuple[list[int], "pd.DataFrame"]]:
    """What counting takes, some shards at a time."""
    num_shards = len(store.manifest["shards"])
    for start in range(0, num_shards, SHARDS_AT_ONCE):
        numbers = list(range(start, min(start + SHARDS_AT_ONCE, num_shards)))
        yield numbers, store.pairs_of(numbers, ("language", "caption_kind"))


def _apart(pairs: "pd.DataFrame") -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """The pairs of sentences, and those of the pictures that have none."""
    is_sentence = (pairs["caption_kind"] == "caption").to_numpy(bool)
    if is_sentence.all():
        return pairs, pairs[:0]
    sentences, rest = pairs[is_sentence], pairs[~is_sentence]
    return sentences, rest[~rest["image_index"].isin(sentences["image_index"])]

"""Several sources as one: their parts side by side, their ids kept apart by their names.

A weight is the share of a source's training pairs that stays: a hash of the pair's id decides, so that it is the same
pairs whatever the parts are. A cap is divided among the parts of the source, each of which keeps those of its training
pairs whose hash is least: exact within a part, so that no part has to know another, and at most the cap in all; where
a part has fewer training pairs than its share, as one that holds only what is held out, the source stays below it.
What is held out stays whole.
"""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from clip_core.config.sources import Mixed, MixtureSource
from clip_core.data import sources
from clip_core.data.sources import Harvest, Part

if TYPE_CHECKING:
    import pandas as pd

IDS = ("pair_id", "image_id", "text_id", "concept_id", "family")
NO_CAP = -1  # of a part


def parts_of(data: MixtureSource) -> list[Part]:
    """The parts of all sources, each named after its source; with what it may keep of the cap at the end of `at`."""
    return [part for mixed in data.sources for part in _parts_of(mixed)]


def _parts_of(mixed: Mixed) -> Iterator[Part]:
    parts = sources.parts_of(mixed.source)
    for number, part in enumerate(parts):
        cap = NO_CAP
        if mixed.max_pairs is not None:
            cap = mixed.max_pairs // len(parts) + (number < mixed.max_pairs % len(parts))
        yield Part(f"{mixed.name}.{part.name}", part.reads, (*part.at, cap))


def harvest(data: MixtureSource, part: Part) -> Harvest:
    """What the source gives, thinned, under its own licence or that of the mixture."""
    name, _, inner_name = part.name.partition(".")
    (mixed,) = (one for one in data.sources if one.name == name)
    *at, cap = part.at
    assert isinstance(cap, int)
    found = sources.harvest(mixed.source, Part(inner_name, part.reads, tuple(at)))
    pairs, left_out = thinned(found.pairs, mixed.weight, cap)
    image_ids = set(pairs["image_id"].dropna()) if len(pairs) else set()
    counts = {"pairs": len(pairs), "pictures": len(image_ids), **left_out, **found.more}
    return replace(
        found,
        pairs=_named(pairs, name).assign(**({"licence": mixed.licence} if mixed.licence else {})),
        images=((f"{name}/{image_id}", image) for image_id, image in found.images if image_id in image_ids),
        rejected=_named(found.rejected, name),
        more={"sources": {name: counts}},
    )


def thinned(pairs: "pd.DataFrame", weight: float, cap: int) -> tuple["pd.DataFrame", dict[str, int]]:
    """The pairs without the training pairs that the weight, and then the cap, leave out; and how many these are."""
    import numpy as np

    if pairs.empty:
        return pairs, {"left_out_by_weight": 0, "left_out_by_max_pairs": 0}
    train = np.flatnonzero(pairs["split"] == "train")
    places = np.array([_place_of(pair_id) for pair_id in pairs["pair_id"].iloc[train]])
    order = np.argsort(places, kind="stable")
    light = order[places[order] < weight]
    stays = light if cap == NO_CAP else light[:cap]
    leaves = np.setdiff1d(train, train[stays])
    counts = {"left_out_by_weight": len(train) - len(light), "left_out_by_max_pairs": len(light) - len(stays)}
    return pairs.iloc[np.setdiff1d(np.arange(len(pairs)), leaves)], counts


def _place_of(pair_id: str) -> float:
    """A number from 0 to below 1 that is as good as random, and always the same for this pair."""
    return (int.from_bytes(sha256(pair_id.encode()).digest()[:8]) >> 11) / 2**53


def _named(rows: "pd.DataFrame", name: str) -> "pd.DataFrame":
    """The rows with the source's name before each id that is there."""
    columns = [column for column in IDS if column in rows.columns]
    return rows.assign(**{column: rows[column].map(f"{name}/{{}}".format, na_action="ignore") for column in columns})

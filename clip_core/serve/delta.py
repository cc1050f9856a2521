"""A gallery after pictures came and went, without encoding or building again what is there.

Its store is links to the files of the base, and one shard `delta` with all pictures that came since. An approximate
index is a link, too: what came is compared beside it, what went is left out (`Approximate`). The features are one
matrix, copied without what went: reading them takes as long as the copy, and exact search needs nothing else. When
the delta has grown, or a picture comes back whose id the base has, all of it is written anew as a base.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clip_core.data.store import StoreWriter, extend_store, open_store
from clip_core.files import link_file
from clip_core.serve import approximate
from clip_core.serve.assemble import Gallery
from clip_core.serve.gallery import SHARD_BYTES
from clip_core.serve.index import (
    FEATURES,
    KEPT,
    build_search,
    describe_index,
    of_pictures,
    read_content,
    read_index,
    read_kept,
)

if TYPE_CHECKING:
    from clip_core.data.store import Store

DELTA = "delta"  # a shard of the store


class Change(NamedTuple):
    """What becomes of a gallery."""

    removed: Collection[str]  # ids of pictures that it has
    new: "Store | None"
    features: np.ndarray  # (new, embed_dim)


def write_changed(
    before: Gallery, change: Change, queries: np.ndarray, k: int, max_delta: float, after: Gallery, scratch: Path
) -> tuple[float, bool]:
    """Writes the changed gallery into the new folders `after`, by way of `scratch` on the same disk.

    Returns the recall of the `queries` at `k`, and whether a new base was made: when more than `max_delta` of the base
    came or went. UserError when the recall is below what the index has to have.
    """
    store, content, features = open_store(before.store), read_content(before.index), read_index(before.index).features
    stays, new = np.array([image_id not in change.removed for image_id in content.image_ids]), change.new
    new_ids = new.image_ids if new else []
    image_ids = [image_id for image_id, does in zip(content.image_ids, stays, strict=True) if does] + new_ids
    metadata = {
        column: [value for value, does in zip(values, stays, strict=True) if does] + _new_values(new, column)
        for column, values in content.metadata.items()
    }

    kept = np.ones(len(stays), dtype=bool) if (known := read_kept(before.index)) is None else known
    kept[np.flatnonzero(kept)[~stays[: kept.sum()]]] = False
    num_later = len(image_ids) - int(kept.sum())
    has_grown = num_later + (~kept).sum() > max_delta * len(kept)
    comes_back = not set(new_ids).isdisjoint(store.image_ids)
    is_merged = bool(has_grown or comes_back or content.kind == "milvus")  # a collection is of one release

    for folder in (after.index, after.store.parent):
        folder.mkdir(parents=True, exist_ok=True)
    rows = np.concatenate([features[stays], change.features])
    if is_merged:
        order = sorted(range(len(image_ids)), key=image_ids.__getitem__)
        image_ids, rows = [image_ids[place] for place in order], rows[order]
        metadata = {column: [values[place] for place in order] for column, values in metadata.items()}
        _write_store(store, new, set(image_ids), after.store)
    else:
        later = image_ids[len(image_ids) - num_later :]
        if later:
            _write_store(store, new, set(later), scratch / DELTA)
        extend_store(before.store, DELTA, scratch / DELTA if later else None, after.store)
        np.save(after.index / KEPT, kept)
        if content.kind != "exact":
            link_file(before.index / approximate.FILE, after.index / approximate.FILE)
    np.save(after.index / FEATURES, rows)
    content = content._replace(image_ids=image_ids, metadata=metadata)
    if is_merged:
        build_search(content, rows, after.index)
    return describe_index(after.index, content, queries, k), is_merged


def _new_values(new: "Store | None", column: str) -> list:
    """None where nobody has described the pictures so."""
    if new is None:
        return []
    return of_pictures(new, column) if column in new.pairs.columns else [None] * len(new)


def _write_store(before: "Store", new: "Store | None", image_ids: set[str], folder: Path) -> None:
    """Writes a store of one shard of those of the pictures that either store has; what is new counts."""
    import pandas as pd

    pictures, tables = {}, []
    for store in (before, new) if new else (before,):
        held = {image_id: place for place, image_id in enumerate(store.image_ids) if image_id in image_ids}
        tables = [table[~table.image_id.isin(held)] for table in tables]
        tables.append(store.pairs[store.pairs.image_id.isin(held)])
        pictures |= {image_id: (store, place) for image_id, place in held.items()}
    writer = StoreWriter(folder, SHARD_BYTES)
    for image_id in sorted(pictures):
        store, place = pictures[image_id]
        writer.add(image_id, store.image_bytes(place))
    writer.finish(pd.concat(tables, ignore_index=True))

"""A packed split as a benchmark: its distinct Chinese texts, its pictures, and which go together."""

from dataclasses import dataclass

import numpy as np

from clip_core.data.store import Store
from clip_core.errors import UserError

GROUPS = ("seen", "unseen", "all")  # concepts that occur in train, concepts that do not, everything


@dataclass(frozen=True)
class Benchmark:
    """Texts and pictures with their ids; a pair is a text and a picture that go together."""

    texts: list[str]
    text_ids: list[str]
    image_ids: list[str]
    is_seen: np.ndarray  # (pictures,) bool
    classes: list[str | None]  # the Chinese concept group of each picture; None where the source has none
    pairs: np.ndarray  # (pairs, 2) places in texts and image_ids


@dataclass(frozen=True)
class Questions:
    """One group's queries: the texts and pictures in it, and the right answers as places among these."""

    texts: np.ndarray  # places in the benchmark's texts
    images: np.ndarray  # places in the benchmark's image_ids; all of them are candidates
    right_images: list[np.ndarray]  # of each text
    asking_images: np.ndarray  # places among `images` of those that have a text
    right_texts: list[np.ndarray]  # of each asking picture


def read_benchmark(store: Store) -> Benchmark:
    """The benchmark in a packed split: a query is a distinct Chinese name (or caption, where there are no names)."""
    rows = store.pairs
    place = {image_id: i for i, image_id in enumerate(store.image_ids)}
    pictures = rows.drop_duplicates("image_id").set_index("image_id").reindex(store.image_ids)
    asked = rows[(rows.language == "zh") & rows.caption_kind.isin(["name", "caption"])].sort_values("text_id")
    if asked.empty:
        raise UserError("no Chinese name or caption in this split: there is nothing to ask; check the column language")
    first = asked.drop_duplicates("caption")
    text_place = {caption: i for i, caption in enumerate(first.caption)}
    pairs = {(text_place[caption], place[image]) for caption, image in zip(asked.caption, asked.image_id, strict=True)}
    return Benchmark(
        texts=first.caption.tolist(),
        text_ids=first.text_id.tolist(),
        image_ids=list(store.image_ids),
        is_seen=pictures.seen.to_numpy(dtype=bool),
        classes=[name if isinstance(name, str) else None for name in pictures.group],
        pairs=np.array(sorted(pairs)),
    )


def questions(benchmark: Benchmark, group: str) -> Questions:
    """The queries of one group, asked among the pictures (and texts) of this group only."""
    wanted = {"seen": benchmark.is_seen, "unseen": ~benchmark.is_seen, "all": np.ones_like(benchmark.is_seen)}[group]
    images = np.flatnonzero(wanted)
    pairs = benchmark.pairs[wanted[benchmark.pairs[:, 1]]]
    texts, text_places = np.unique(pairs[:, 0], return_inverse=True)
    image_places = np.searchsorted(images, pairs[:, 1])
    asking_images, asking_places = np.unique(image_places, return_inverse=True)
    return Questions(
        texts=texts,
        images=images,
        right_images=_grouped(image_places, text_places, len(texts)),
        asking_images=asking_images,
        right_texts=_grouped(text_places, asking_places, len(asking_images)),
    )


def _grouped(values: np.ndarray, keys: np.ndarray, num_keys: int) -> list[np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.searchsorted(keys[order], np.arange(1, num_keys + 1)))[:num_keys]

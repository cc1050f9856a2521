"""A packed split as a benchmark: its Chinese texts, its pictures, and which go together.

All of them are candidates: also a picture that no text names, and a text that has no picture. A text is one query by
its id, as in the reference; two that read the same are two.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clip_core.data.store import Store
from clip_core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

GROUPS = (
    "seen",  # concepts that occur in train
    "unseen",  # concepts that do not
    "all",  # both
    "unseen_words",  # words that no caption of train says, asked for all pictures
)


@dataclass(frozen=True)
class Benchmark:
    """Texts and pictures with their ids; a pair is a text and a picture that go together."""

    texts: list[str]
    text_ids: list[str]
    texts_seen: np.ndarray  # (texts,) bool
    are_words: np.ndarray  # (texts,) bool: the unseen words, which no other group asks
    image_ids: list[str]
    is_seen: np.ndarray  # (pictures,) bool
    classes: list[str | None]  # the Chinese concept group of each picture; None where the source has none
    pairs: np.ndarray  # (pairs, 2) places in texts and image_ids


@dataclass(frozen=True)
class Questions:
    """One group's candidates and queries, as places in the benchmark, and the right answers, as places in candidates.

    What has no right answer is a candidate and asks nothing.
    """

    texts: np.ndarray
    images: np.ndarray
    asking_texts: np.ndarray
    right_images: list[np.ndarray]  # of each asking text, places in `images`
    asking_images: np.ndarray
    right_texts: list[np.ndarray]  # of each asking picture, places in `texts`


def read_benchmark(store: Store) -> Benchmark:
    """The benchmark in a packed split."""
    found = benchmark_of(store.pairs, store.image_ids)
    if not len(found.pairs):
        raise UserError("no Chinese name or caption in this split: there is nothing to ask; check the column language")
    return found


def benchmark_of(rows: "pd.DataFrame", image_ids: list[str]) -> Benchmark:
    """The benchmark in a pair table with `seen`; its texts are the Chinese names and unseen words, or captions."""
    pictures = rows.dropna(subset="image_id").drop_duplicates("image_id").set_index("image_id").loc[image_ids]
    asked = rows[(rows.language == "zh") & rows.caption_kind.isin(["name", "caption", "unseen_word"])]
    asked = asked.sort_values("text_id")
    paired = asked.dropna(subset="image_id")
    texts = asked.drop_duplicates("text_id")
    text_place = {text_id: i for i, text_id in enumerate(texts.text_id)}
    place = {image_id: i for i, image_id in enumerate(image_ids)}
    pairs = {(text_place[text], place[image]) for text, image in zip(paired.text_id, paired.image_id, strict=True)}
    return Benchmark(
        texts=texts.caption.tolist(),
        text_ids=texts.text_id.tolist(),
        texts_seen=texts.seen.to_numpy(dtype=bool),
        are_words=(texts.caption_kind == "unseen_word").to_numpy(dtype=bool),
        image_ids=list(image_ids),
        is_seen=pictures.seen.to_numpy(dtype=bool),
        classes=[name if isinstance(name, str) else None for name in pictures.group],
        pairs=np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2),
    )


def questions(benchmark: Benchmark, group: str) -> Questions:
    """The queries of one group, asked among the pictures and texts of this group only.

    A text belongs where its pictures do; one without a picture where its own row says.
    """
    of_group = {"seen": lambda seen: seen, "unseen": np.logical_not}.get(group, np.ones_like)
    wanted, of_kind = of_group(benchmark.is_seen), benchmark.are_words == (group == "unseen_words")
    images = np.flatnonzero(wanted)
    pairs = benchmark.pairs[wanted[benchmark.pairs[:, 1]] & of_kind[benchmark.pairs[:, 0]]]
    without_picture = np.setdiff1d(np.flatnonzero(of_group(benchmark.texts_seen) & of_kind), benchmark.pairs[:, 0])
    texts = np.union1d(pairs[:, 0], without_picture)
    asking_texts, of_text = np.unique(pairs[:, 0], return_inverse=True)
    asking_images, of_image = np.unique(pairs[:, 1], return_inverse=True)
    return Questions(
        texts=texts,
        images=images,
        asking_texts=asking_texts,
        right_images=_grouped(np.searchsorted(images, pairs[:, 1]), of_text, len(asking_texts)),
        asking_images=asking_images,
        right_texts=_grouped(np.searchsorted(texts, pairs[:, 0]), of_image, len(asking_images)),
    )


def _grouped(values: np.ndarray, keys: np.ndarray, num_keys: int) -> list[np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.searchsorted(keys[order], np.arange(1, num_keys + 1)))[:num_keys]

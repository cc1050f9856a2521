"""How well the pictures of pairs fit their captions, asked of a model that a stage hands over."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from clip_core.data.pairs import read_images

if TYPE_CHECKING:
    import pandas as pd

PICTURES_AT_ONCE = 512


class Encoders(Protocol):
    """What `clip_core.load` gives: unit vectors."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray: ...

    def encode_images(self, images: Sequence[bytes]) -> np.ndarray: ...


def scores_by(model: Encoders, raw: Path) -> "Callable[[str, pd.DataFrame], np.ndarray]":
    """The function from some pairs of a shard to their scores: the cosine of picture and caption."""

    def scores(shard: str, pairs: "pd.DataFrame") -> np.ndarray:
        found = np.full(len(pairs), np.nan, dtype=np.float32)
        rows_of, captions = pairs.groupby("image_id").indices, pairs["caption"].to_numpy(dtype="object")
        pictures = ((name, image) for name, image in read_images(raw / f"images-{shard}.parquet") if name in rows_of)
        while some := dict(islice(pictures, PICTURES_AT_ONCE)):
            rows = np.concatenate([rows_of[name] for name in some])
            picture_of = np.repeat(np.arange(len(some)), [len(rows_of[name]) for name in some])
            texts, text_of = np.unique(captions[rows], return_inverse=True)
            image_features, text_features = model.encode_images([*some.values()]), model.encode_texts([*texts])
            found[rows] = (image_features[picture_of] * text_features[text_of]).sum(1)
        assert not np.isnan(found).any(), f"{shard}: pictures of pairs are missing in {raw}"
        return found

    return scores

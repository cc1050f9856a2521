"""Batches of training pairs: step -> pictures and the token ids of a caption each, a function of (seed, step)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from clip_core.config.training import Training
from clip_core.data.augmentation import augment
from clip_core.data.captions import describe, draw_caption
from clip_core.data.sampler import batches_of_epoch, random_at
from clip_core.errors import UserError
from clip_core.image import Preprocessing, pixels_of
from clip_core.text import Tokenizer

if TYPE_CHECKING:
    from clip_core.data.store import Store

MEMORY = 4 * 2**30  # bytes of decoded pictures to keep; larger sets are decoded as they are needed
Pictures = Callable[[np.ndarray], Tensor]  # rows of the store -> pixels or features


@dataclass(frozen=True)
class Batch:
    images: Tensor  # (batch, 3, side, side) pixels, or (batch, embed_dim) features
    token_ids: Tensor  # (batch, length)


class TrainingBatches:
    """The training pairs of a store as global batches: `batch(step)` is a function of (seed, step)."""

    def __init__(self, store: "Store", images: Pictures, tokenizer: Tokenizer, params: Training, seed: int) -> None:
        self.params, self.seed = params, seed
        self._image_ids = store.image_ids
        self._images = images
        self._tokenizer = tokenizer
        self._described = describe(store.pairs, store.image_ids, params.captions.language)
        self.num_pairs = sum(described.num_captions for described in self._described.values())
        self._pictures = np.array(list(self._described))  # those that have captions in the language
        self._concepts = _numbered_concepts(store)[self._pictures]
        self._epoch = -1, np.empty((0, 0), dtype=int)

    def batch(self, step: int) -> Batch:
        """The batch of step 1, 2, ...; the same for the same seed, whatever was asked before."""
        rows, captions = self._drawn(step)
        images = self._images(rows)
        if images.dtype == torch.uint8:
            images = augment(images, self.params.augmentation, random_at(self.seed, "augmentation", step))
        return Batch(images, torch.from_numpy(self._tokenizer(captions)))

    def named(self, step: int) -> list[str]:
        """The pairs of that batch for a person: the picture's id and the caption drawn for it."""
        rows, captions = self._drawn(step)
        return [f"{self._image_ids[row]}: {caption}" for row, caption in zip(rows, captions, strict=True)]

    def _drawn(self, step: int) -> tuple[np.ndarray, list[str]]:
        rows, random = self._rows(step), random_at(self.seed, "caption", step)
        return rows, [draw_caption(self._described[row], self.params.captions, random) for row in rows]

    def _rows(self, step: int) -> np.ndarray:
        batch = self.params.global_batch
        epoch, number = divmod(step - 1, max(1, len(self._concepts) // batch))
        if self._epoch[0] != epoch:
            self._epoch = epoch, batches_of_epoch(self._concepts, batch, self.seed, epoch)
        return self._pictures[self._epoch[1][number]]


def decoded(store: "Store", image_size: int, preprocessing: Preprocessing) -> Pictures:
    """Pixels of the store's pictures by row: decoded once and kept if they fit into `MEMORY`, else as needed."""

    def decode(row: int) -> np.ndarray:
        try:
            return pixels_of(store.image_bytes(row), image_size, preprocessing)
        except ValueError as error:
            raise UserError(f"picture {store.image_ids[row]}: {error}") from None

    if len(store) * 3 * image_size**2 > MEMORY:
        return lambda rows: torch.from_numpy(np.stack([decode(row) for row in rows.tolist()]))
    pixels = np.empty((len(store), 3, image_size, image_size), dtype=np.uint8)
    told = time.monotonic()
    for row in range(len(store)):
        pixels[row] = decode(row)
        if time.monotonic() - told > 2 or row + 1 == len(store):
            told = time.monotonic()
            print(f"decoded {row + 1:,} of {len(store):,} pictures", flush=True)
    everything = torch.from_numpy(pixels)
    return lambda rows: everything[rows]


def _numbered_concepts(store: "Store") -> np.ndarray:
    """Each picture's concept as a number; a picture without one stands under its caption."""
    pairs = store.pairs.drop_duplicates("image_id").set_index("image_id").loc[store.image_ids]
    return np.unique(pairs["concept_id"].fillna(pairs["caption"]).to_numpy(dtype=str), return_inverse=True)[1]

"""The pictures of a store as pixels: all of them kept in memory where they fit, else decoded as they are needed."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from clip_core.image import Preprocessing, pixels_of, scaled_pixels_of

if TYPE_CHECKING:
    from clip_core.data.store import Store

MEMORY = 4 * 2**30  # bytes of decoded pictures to keep
Decoding = Literal["exact", "scaled"]


class Pictures(Protocol):
    """Pixels (n, 3, side, side) or features (n, num_views, embed_dim) of a store's pictures, by place in the store."""

    broken: dict[int, str]  # those that can not be decoded, as far as it is known, and why; they come as zeros

    def __call__(self, images: np.ndarray) -> Tensor: ...


@dataclass
class Kept:
    """In memory."""

    rows: Tensor
    broken: dict[int, str]

    def __call__(self, images: np.ndarray) -> Tensor:
        return self.rows[images]


@dataclass
class Stored:
    """Features in .npy files, of which the rows asked for are read; it may be pickled."""

    firsts: list[int]  # the place in the store of each shard's first picture
    files: list[list[Path]]  # of each shard, a file a view
    embed_dim: int
    broken: dict[int, str]

    def __call__(self, images: np.ndarray) -> Tensor:
        shard_of = np.searchsorted(self.firsts, images, side="right") - 1
        rows = np.empty((len(images), len(self.files[0]), self.embed_dim), np.float32)
        for shard in np.unique(shard_of):
            wanted = shard_of == shard
            for view, file in enumerate(self.files[shard]):  # mapped anew: there may be more files than one may map
                rows[wanted, view] = np.load(file, mmap_mode="r")[images[wanted] - self.firsts[shard]]
        return torch.from_numpy(rows)


@dataclass
class AsNeeded:
    """Decoded each time; it may be pickled."""

    store: "Store"
    image_size: int
    preprocessing: Preprocessing
    decoding: Decoding
    broken: dict[int, str] = field(default_factory=dict)

    @property
    def fit(self) -> bool:
        """Whether there is memory for all of them."""
        return len(self.store) * 3 * self.image_size**2 <= MEMORY

    def __call__(self, images: np.ndarray) -> Tensor:
        decode = {"exact": pixels_of, "scaled": scaled_pixels_of}[self.decoding]
        pixels = np.zeros((len(images), 3, self.image_size, self.image_size), np.uint8)
        for row, image in enumerate(images.tolist()):
            try:
                pixels[row] = decode(self.store.image_bytes(image), self.image_size, self.preprocessing)
            except ValueError as error:  # a UserError too; nothing in a picture may stop a training
                self.broken[image] = str(error)
        return torch.from_numpy(pixels)


def decoded(
    store: "Store", image_size: int, preprocessing: Preprocessing, decoding: Decoding = "exact", keep: bool = True
) -> Pictures:
    """The store's pictures, decoded now if they may be kept and fit into `MEMORY`."""
    pictures = AsNeeded(store, image_size, preprocessing, decoding)
    if not keep or not pictures.fit:
        return pictures
    pixels = torch.empty((len(store), 3, image_size, image_size), dtype=torch.uint8)
    told = time.monotonic()
    for row in range(len(store)):
        pixels[row] = pictures(np.array([row]))[0]
        if time.monotonic() - told > 2 or row + 1 == len(store):
            told = time.monotonic()
            print(f"decoded {row + 1:,} of {len(store):,} pictures", flush=True)
    return Kept(pixels, pictures.broken)

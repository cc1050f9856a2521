"""The frozen image tower's features, computed once for all trainings: kept by the hash of what they are made of.

Each shard's by themselves, so that a shard that is new or changed is the only one encoded; each view's, too, so that
more views leave those that are there. Texts, schedule and what else a training has decide nothing of them.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clip_core.code import reached_by
from clip_core.config.loader import IN_PROCESS, Loader
from clip_core.config.section import hash_of
from clip_core.config.training import Augmentation
from clip_core.data.augmentation import augment
from clip_core.data.loader import in_workers, num_workers
from clip_core.data.pictures import AsNeeded, Stored
from clip_core.data.sampler import random_at
from clip_core.kept import KEPT, keep_in_pieces, kept
from clip_core.model.clip import CLIP
from clip_core.model.precision import in_precision, kind_of, pick_device
from clip_core.train.feature_file import FILE, Broken, whole, write

AT_ONCE = 256  # pictures
SPEAKS_EVERY = 3.0  # seconds


@dataclass(frozen=True)
class View:
    """A way to change all pictures before they are encoded, each in its own measure."""

    augmentation: Augmentation
    seed: int
    number: int

    def __call__(self, pixels: Tensor, places: Sequence[int]) -> Tensor:
        """The pictures (n, 3, side, side), each changed as a function of (seed, number, its place in its shard)."""
        randoms = [random_at(self.seed, "view", self.number, place) for place in places]
        changed = [
            augment(picture[None], self.augmentation, random, 1, slice(0, 1))
            for picture, random in zip(pixels, randoms, strict=True)
        ]
        return torch.cat(changed)


AS_THEY_ARE = (None,)  # one view, in which nothing is changed


@dataclass(frozen=True)
class Part:
    """A shard's pictures in one view, and the name of their features."""

    first: int  # the place in the store of the first picture
    num_pictures: int
    view: View | None
    key: str


def image_features_of(
    model: CLIP,
    pictures: AsNeeded,
    precision: str,
    views: Sequence[View | None] = AS_THEY_ARE,
    loader: Loader = IN_PROCESS,
) -> Stored:
    """The features of all pictures in these views, with the model as in use; those that are not kept are computed."""
    made_of = _made_of(model, pictures, precision)
    shards = [shard for shard in pictures.store.manifest["shards"] if shard["num_images"]]
    parts = [_part(shard, view, made_of) for shard in shards for view in views]
    missing = [part for part in parts if not _is_kept(part)]
    progress = _Progress(*(sum(part.num_pictures for part in some) for some in (parts, missing)))
    if missing:
        encode = _encoder(model, precision)
        compute = partial(_compute, encode, model.architecture.embed_dim, pictures, loader, progress)
        for part in missing:
            keep_in_pieces("features", part.key, partial(compute, part))
    files, broken = [], {}
    for part in parts:
        folder = KEPT / "features" / part.key
        about = whole(folder, part.num_pictures)
        assert about, f"{folder}: removed, or damaged, while others were made"
        files.append(folder.absolute() / FILE)
        broken |= {part.first + row: why for row, why in about.broken.items()}
    by_shard = [files[start : start + len(views)] for start in range(0, len(files), len(views))]
    return Stored([shard["first"] for shard in shards], by_shard, model.architecture.embed_dim, broken)


def freeze_image_tower(model: CLIP) -> None:
    """Keeps image tower and image projection as they are."""
    model.image_tower.requires_grad_(False)
    model.image_projection.requires_grad_(False)


def _made_of(model: CLIP, pictures: AsNeeded, precision: str) -> str:
    """The hash of all that decides features, but for pictures and view: a start with other texts has the same."""
    weights = hashlib.sha256()
    for module in (model.image_tower, model.image_projection):
        for name, tensor in sorted(module.state_dict().items()):
            weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            weights.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    reached = reached_by(__name__)
    return hash_of(
        weights.hexdigest(),
        model.architecture.image_tower,
        pictures.image_size,
        asdict(pictures.preprocessing),
        pictures.decoding,
        precision,
        kind_of(pick_device("auto")),
        reached.code,
        reached.versions,
    )


def _part(shard: dict, view: View | None, made_of: str) -> Part:
    looks = None if view is None else (view.augmentation.model_dump(mode="json"), view.seed, view.number)
    key = hash_of(made_of, [file["sha256"] for file in shard["files"]], shard["num_images"], looks)
    return Part(shard["first"], shard["num_images"], view, key)


def _is_kept(part: Part) -> bool:
    folder = kept("features", part.key)
    if folder is None or whole(folder, part.num_pictures):
        return folder is not None
    print(f"{folder}: torn or damaged: its pictures are encoded again", flush=True)
    shutil.rmtree(folder)
    return False


def _encoder(model: CLIP, precision: str) -> Callable[[Tensor], Tensor]:
    """What a training's step would make of the pictures, on the CPU."""
    device = pick_device("auto")
    model.to(device).eval().image_tower.to(memory_format=torch.channels_last)  # as in a step
    encode = in_precision(model.encode_images, precision, device)

    def encoded(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return encode(pixels).cpu()

    return encoded


def _compute(
    encode: Callable[[Tensor], Tensor],
    embed_dim: int,
    pictures: AsNeeded,
    loader: Loader,
    progress: "_Progress",
    part: Part,
    folder: Path,
) -> None:
    """Fills `folder` with the part's features."""

    def pieces(first: int) -> Iterator[tuple[np.ndarray, Broken]]:
        progress(first, is_kept=True)
        starts = range(first, part.num_pictures, AT_ONCE)
        places = (np.arange(start, min(start + AT_ONCE, part.num_pictures)) for start in starts)
        read = _Reader(pictures, part)
        with closing(in_workers(read, places, num_workers(loader, pictures.fit), loader.prefetch)) as made:
            for pixels, broken in made:
                yield encode(pixels).numpy(), broken
                progress(len(pixels))

    write(folder, (part.num_pictures, embed_dim), pieces)


@dataclass(frozen=True)
class _Reader:
    """The pictures of a part as its view shows them, and which of them are broken."""

    pictures: AsNeeded
    part: Part

    def __call__(self, places: np.ndarray) -> tuple[Tensor, Broken]:
        pixels, why = self.pictures(places + self.part.first), self.pictures.broken
        broken = {i: why[i + self.part.first] for i in places.tolist() if i + self.part.first in why}
        return pixels if self.part.view is None else self.part.view(pixels, places.tolist()), broken


class _Progress:
    """Lines on how far it is, with the time left."""

    def __init__(self, num_all: int, num_missing: int) -> None:
        self._all, self._done, self._computed = num_all, num_all - num_missing, 0
        self._start = self._told = time.monotonic()
        if self._done:
            print(f"the features of {self._done:,} of {num_all:,} pictures are kept from before", flush=True)

    def __call__(self, num: int, *, is_kept: bool = False) -> None:
        """So many more are done, or are found done."""
        self._done += num
        self._computed += 0 if is_kept else num
        now = time.monotonic()
        if self._computed and (now - self._told > SPEAKS_EVERY or self._done == self._all):
            self._told = now
            left = round((now - self._start) / self._computed * (self._all - self._done))
            line = f"encoded {self._done:,} of {self._all:,} pictures"
            print(f"{line}  {left // 60}:{left % 60:02} left", flush=True)

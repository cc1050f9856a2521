"""The frozen image tower's features, computed once for all trainings: kept by the hash of what they are made of.

Each shard's by themselves, so that a shard that is new or changed is the only one encoded; each view's, too, so that
more views leave those that are there. Texts, schedule and what else a training has decide nothing of them.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_core.code import reached_by
from clip_core.config.loader import IN_PROCESS, Loader
from clip_core.config.section import hash_of
from clip_core.config.training import Augmentation
from clip_core.data.augmentation import augment
from clip_core.data.feature_file import FILE, Broken, num_saved, whole, write
from clip_core.data.loader import in_workers, num_workers
from clip_core.data.pictures import AsNeeded, Stored
from clip_core.data.sampler import random_at
from clip_core.kept import KEPT, begun, keep_in_pieces, kept
from clip_core.model.clip import CLIP
from clip_core.model.precision import in_precision, kind_of, pick_device
from clip_core.train.distributed import barrier, num_ranks, rank

KIND = "features"  # of kept results
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

    @property
    def folder(self) -> Path:
        """Of its features."""
        return KEPT / KIND / self.key


def image_features_of(
    model: CLIP,
    pictures: AsNeeded,
    precision: str,
    views: Sequence[View | None] = AS_THEY_ARE,
    loader: Loader = IN_PROCESS,
) -> Stored:
    """The features of all pictures in these views, with the model as in use; those that are not kept are computed."""
    embed_dim, made_of = model.architecture.embed_dim, _made_of(model, pictures, precision)
    shards = [shard for shard in pictures.store.manifest["shards"] if shard["num_images"]]
    parts = [_part(shard, view, made_of) for shard in shards for view in views]
    own = parts[rank() :: num_ranks()]
    missing = [part for part in own if not _is_kept(part)]
    if num_kept := sum(part.num_pictures for part in own) - sum(part.num_pictures for part in missing):
        print(f"{num_kept:,} pictures were encoded before", flush=True)
    if missing:
        _compute(missing, _encoder(model, precision), embed_dim, pictures, loader)
    barrier()  # ranks share the work out
    files, broken = [], {}
    for part in parts:
        about = whole(part.folder, part.num_pictures)
        assert about, f"{part.folder}: removed, or damaged, while others were made"
        files.append(part.folder.absolute() / FILE)
        broken |= {part.first + row: why for row, why in about.broken.items()}
    by_shard = [files[start : start + len(views)] for start in range(0, len(files), len(views))]
    return Stored([shard["first"] for shard in shards], by_shard, embed_dim, broken)


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
    folder = kept(KIND, part.key)
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
    parts: list[Part], encode: Callable[[Tensor], Tensor], embed_dim: int, pictures: AsNeeded, loader: Loader
) -> None:
    """Makes the features of the parts, each once its pictures are read; the same workers read for all."""
    saved = {part.key: num_saved(begun(KIND, part.key), (part.num_pictures, embed_dim)) for part in parts}
    progress = _Progress(sum(part.num_pictures for part in parts), sum(saved.values()))
    read = in_workers(_Reader(pictures), _pieces(parts, saved), num_workers(loader, pictures.fit), loader.prefetch)
    with closing(read):
        for part, pieces in groupby(read, lambda piece: piece.part):
            rows = ((piece.first, encode(piece.pixels).numpy(), piece.broken) for piece in progress.through(pieces))
            shape = part.num_pictures, embed_dim
            keep_in_pieces(KIND, part.key, partial(write, shape=shape, pieces=rows))


def _pieces(parts: list[Part], saved: dict[str, int]) -> Iterator[tuple[Part, np.ndarray]]:
    """The parts from where they are saved up to, some places at a time; of each part one piece at least."""
    for part in parts:
        first = min(saved[part.key], part.num_pictures - 1) // AT_ONCE * AT_ONCE
        for start in range(first, part.num_pictures, AT_ONCE):
            if start > first and part.folder.is_dir():  # another process has made it meanwhile
                break
            yield part, np.arange(start, min(start + AT_ONCE, part.num_pictures))


class _Piece(NamedTuple):
    """Some pictures of a part, read."""

    part: Part
    first: int  # place in the part
    pixels: Tensor  # (n, 3, side, side) as the view shows them
    broken: Broken


@dataclass(frozen=True)
class _Reader:
    """Reads pieces, in whatever process."""

    pictures: AsNeeded

    def __call__(self, piece: tuple[Part, np.ndarray]) -> _Piece:
        part, places = piece
        pixels, why = self.pictures(places + part.first), self.pictures.broken
        broken = {i: why[i + part.first] for i in places.tolist() if i + part.first in why}
        shown = part.view(pixels, places.tolist()) if part.view else pixels
        return _Piece(part, int(places[0]), shown, broken)


class _Progress:
    """Lines on how far it is, with the time left."""

    def __init__(self, num_all: int, num_done: int) -> None:
        self._all, self._first, self._done = num_all, num_done, num_done
        self._start = self._told = time.monotonic()

    def through(self, pieces: Iterable[_Piece]) -> Iterator[_Piece]:
        """The pieces; when one is asked for, the one before is done."""
        for piece in pieces:
            yield piece
            self._done, now = self._done + len(piece.pixels), time.monotonic()
            if now - self._told > SPEAKS_EVERY or self._done >= self._all:
                self._told = now
                left = round((now - self._start) / (self._done - self._first) * max(self._all - self._done, 0))
                line = f"encoded {self._done:,} of {self._all:,} pictures"
                print(f"{line}  {left // 60}:{left % 60:02} left", flush=True)

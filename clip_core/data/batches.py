"""Batches of training pairs: step -> pictures and the token ids of a caption each, a function of (seed, step)."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from clip_core.config.loader import IN_PROCESS, Loader
from clip_core.config.training import Augmentation, Training
from clip_core.data.augmentation import augment, drawn_view
from clip_core.data.captions import draw_caption
from clip_core.data.loader import ahead, in_workers, num_workers
from clip_core.data.order import Order
from clip_core.data.pictures import Kept, Pictures, Stored
from clip_core.data.rows import components
from clip_core.data.sampler import random_at
from clip_core.errors import UserError
from clip_core.text import Tokenizer

if TYPE_CHECKING:
    from clip_core.data.store import Store

PART = 256  # rows that a worker makes at a time
POSITIVES = ("pair", "caption", "picture", "group")  # each takes in those before it
SPARES = 100  # how many pictures in a row may fail


class Shown(NamedTuple):
    """The same rows as a teacher has them; of no width where it is not asked."""

    image_features: Tensor  # (local batch, its embed_dim)
    token_ids: Tensor  # (local batch, length)


@dataclass(frozen=True)
class ToShow:
    """What makes them; None: not asked."""

    images: Stored | None
    tokenizer: Tokenizer | None

    def __call__(self, images: np.ndarray, captions: list[str]) -> Shown:
        features = torch.empty(len(images), 0) if self.images is None else self.images(images)[:, 0]
        nothing = np.empty((len(captions), 0), np.int64)
        return Shown(features, torch.from_numpy(self.tokenizer(captions) if self.tokenizer else nothing))


NOTHING = ToShow(None, None)


@dataclass(frozen=True)
class Batch:
    images: Tensor  # (local batch, 3, side, side) pixels, or (local batch, embed_dim) features
    token_ids: Tensor  # (local batch, length)
    kinds: Tensor | None = None  # (global batch,): rows of the same number are no negatives of each other; none repeats
    shown: Shown | None = None

    @property
    def share_of_kin(self) -> float:
        """Of the global batch's rows those that are not alone of their kind."""
        if self.kinds is None:
            return 0.0
        return (self.kinds.bincount()[self.kinds] > 1).float().mean().item()


class Part(NamedTuple):
    """Some rows of a step, to be made."""

    step: int
    rows: slice  # of the global batch
    images: np.ndarray
    captions: list[str]


class Made(NamedTuple):
    """They are made."""

    step: int
    rows: slice
    images: Tensor
    token_ids: Tensor
    shown: Shown
    broken: dict[int, str]  # row of the global batch -> why its picture, all zeros, can not be decoded
    num_truncated: int

    def of(self, rows: slice) -> "Made":
        """Some of them."""
        shown = Shown(self.shown.image_features[rows], self.shown.token_ids[rows])
        return self._replace(images=self.images[rows], token_ids=self.token_ids[rows], shown=shown)


@dataclass(frozen=True)
class Maker:
    """Makes parts, in whatever process."""

    pictures: Pictures
    tokenizer: Tokenizer
    augmentation: Augmentation
    global_batch: int
    seed: int
    show: ToShow

    def __call__(self, part: Part) -> Made:
        images, before = self.pictures(part.images), self.tokenizer.num_truncated
        random = random_at(self.seed, "augmentation", part.step)
        if images.dtype == torch.uint8:
            images = augment(images, self.augmentation, random, self.global_batch, part.rows)
        else:
            images = drawn_view(images, random, self.global_batch, part.rows)
        token_ids = torch.from_numpy(self.tokenizer(part.captions))
        why = self.pictures.broken | (self.show.images.broken if self.show.images else {})
        broken = {row: why[i] for row, i in enumerate(part.images.tolist(), part.rows.start) if i in why}
        shown, num_truncated = self.show(part.images, part.captions), self.tokenizer.num_truncated - before
        return Made(part.step, part.rows, images, token_ids, shown, broken, num_truncated)


class TrainingBatches:
    """The training rows of a store as batches: `batch(step)` is a function of (seed, step), of which a rank has a part.

    Steps asked for one after the other are made ahead of time by worker processes, until `close`.
    """

    def __init__(
        self,
        store: "Store",
        images: Pictures,
        tokenizer: Tokenizer,
        params: Training,
        seed: int,
        loader: Loader = IN_PROCESS,
        rank: int = 0,
        num_ranks: int = 1,
        show: ToShow = NOTHING,
    ) -> None:
        self.params, self.seed = params, seed
        self.broken: dict[str, str] = {}  # pictures that could not be decoded, and why
        self._store = store
        self._order = Order(store, params.captions.language, params.global_batch, seed)
        self._make = Maker(images, tokenizer, params.augmentation, params.global_batch, seed, show)
        self._workers, self._prefetch = num_workers(loader, isinstance(images, Kept | Stored)), loader.prefetch
        self._local = slice(*(params.global_batch * bound // num_ranks for bound in (rank, rank + 1)))
        self._stream: Generator[Batch] | None = None
        self._next = 0  # the step that the stream gives next

    @property
    def num_rows(self) -> int:
        """In an epoch."""
        return sum(self._order.epochs.num_rows)

    def batch(self, step: int) -> Batch:
        """This rank's rows of the batch of step 1, 2, ...; the same for the same seed, whatever was asked before."""
        if self._stream is None or self._next != step:
            self.close()
            batches = self._batches(step)
            self._stream = ahead(batches) if self._workers else batches
        self._next = step + 1
        return next(self._stream)

    def named(self, step: int) -> list[str]:
        """The pairs of the global batch for a person: the picture's id and the caption drawn for it."""
        part = self._part(step, slice(0, self.params.global_batch))
        image_ids = self._store.ids_of(part.images.tolist())
        return [f"{image_id}: {caption}" for image_id, caption in zip(image_ids, part.captions, strict=True)]

    def close(self) -> None:
        """Ends the worker processes."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batches(self, first_step: int) -> Generator[Batch]:
        parts: list[Made] = []
        for made in in_workers(self._make, self._parts(first_step), self._workers, self._prefetch):
            if self._workers:
                self._make.tokenizer.num_truncated += made.num_truncated  # of another process
            parts.append(self._repaired(made))
            if made.rows.stop == self._local.stop:
                yield _joined(parts, self._kinds(made.step))
                parts = []

    def _parts(self, first_step: int) -> Iterator[Part]:
        num_rows = PART if self._workers else self.params.global_batch
        for step in count(first_step):
            whole = self._part(step, self._local)
            for start in range(0, len(whole.images), num_rows):
                some = slice(start, min(start + num_rows, len(whole.images)))
                rows = slice(self._local.start + some.start, self._local.start + some.stop)
                yield Part(step, rows, whole.images[some], whole.captions[some])

    def _part(self, step: int, rows: slice) -> Part:
        """Captions are drawn for the whole batch, whoever makes which of its rows."""
        images = np.array([row.image for row in self._order.rows(step)[rows]])
        return Part(step, rows, images, self._captions(step)[rows])

    def _captions(self, step: int) -> list[str]:
        random = random_at(self.seed, "caption", step)
        return [draw_caption(row.caption, self.params.captions, random) for row in self._order.rows(step)]

    def _kinds(self, step: int) -> Tensor | None:
        """By `loss.positives`; none where no two rows of the global batch are of one kind."""
        positives = POSITIVES.index(self.params.loss.positives)
        if positives == 0:
            return None
        rows, captions = self._order.rows(step), self._captions(step)
        shared = [captions, [row.image for row in rows], [row.kind for row in rows]][:positives]
        kinds = components([np.unique(np.array(column), return_inverse=True)[1] for column in shared])
        return torch.from_numpy(kinds) if kinds.max() + 1 < len(kinds) else None

    def _repaired(self, made: Made) -> Made:
        """In the place of each broken picture's row another one, the same for any number of workers and ranks."""
        for place, why in made.broken.items():
            spare, row = self._spare(made.step, place, why), place - made.rows.start
            parts = made.of(slice(row)), spare, made.of(slice(row + 1, None))
            images, token_ids = torch.cat([part.images for part in parts]), _padded([part.token_ids for part in parts])
            made = made._replace(images=images, token_ids=token_ids, shown=_shown(parts))
        return made

    def _spare(self, step: int, place: int, why: str) -> Made:
        """The row that comes a batch later in the order, or the first after it whose picture can be decoded."""
        random, rows = random_at(self.seed, "spare", step, place), slice(place, place + 1)
        (told,) = self._store.ids_of(self._part(step, rows).images.tolist())
        for row in islice(self._order.after(step, place), SPARES):
            caption = draw_caption(row.caption, self.params.captions, random)
            spare = self._make(Part(step, rows, np.array([row.image]), [caption]))
            if not spare.broken:
                if told not in self.broken:
                    print(f"picture {told}: {why}; other rows take its place", flush=True)
                    self.broken[told] = why
                return spare
        raise UserError(f"picture {told}: {why}; nor can the {SPARES} after it be decoded. Run `dvc repro -f -s pack`")


def _joined(parts: list[Made], kinds: Tensor | None) -> Batch:
    """On a machine with CUDA in memory from where a copy to the device does not keep the processor."""
    is_pinned = torch.cuda.is_available()
    images, token_ids = [part.images for part in parts], _padded([part.token_ids for part in parts])
    shown = _shown(parts)
    if not is_pinned:
        return Batch(images[0] if len(images) == 1 else torch.cat(images), token_ids, kinds, shown)
    num_rows = sum(map(len, images))
    pinned = torch.empty((num_rows, *images[0].shape[1:]), dtype=images[0].dtype, pin_memory=True)
    return Batch(torch.cat(images, out=pinned), token_ids.pin_memory(), kinds, shown)


def _shown(parts: Sequence[Made]) -> Shown:
    shown = [part.shown for part in parts]
    return Shown(torch.cat([some.image_features for some in shown]), _padded([some.token_ids for some in shown]))


def _padded(token_ids: list[Tensor]) -> Tensor:
    """All rows, as long as the longest."""
    longest = max(some.shape[1] for some in token_ids)
    return torch.cat([pad(some, (0, longest - some.shape[1])) for some in token_ids])

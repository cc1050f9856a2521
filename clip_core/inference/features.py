"""A model's features of pictures and texts, made once: kept by the hash of all that decides them."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from clip_core.code import reached_by
from clip_core.config.section import hash_of
from clip_core.data.feature_file import FILE, Piece, num_saved, whole, write
from clip_core.errors import UserError
from clip_core.image import pixels_of
from clip_core.inference.predictor import READ_AT_ONCE, Predictor
from clip_core.kept import begun, keep_in_pieces, kept

if TYPE_CHECKING:
    from clip_core.data.store import Store

KIND = "features"  # of kept results
SPEAKS_EVERY = 3.0  # seconds


@dataclass(frozen=True)
class Shelf:
    """Some pictures of a gallery, whose features lie in one file."""

    key: str  # the hash of their bytes
    image_ids: Sequence[str]
    read: Callable[[], Iterable[bytes]]  # all of them, encoded, in this order


def shelves_of(store: "Store") -> list[Shelf]:
    """The pictures of a packed split, by shard."""
    shelves = []
    for shard in store.manifest["shards"]:
        places = range(shard["first"], shard["first"] + shard["num_images"])
        if places:
            key = hash_of([file["sha256"] for file in shard["files"]], len(places))
            shelves.append(Shelf(key, store.ids_of(places), partial(map, store.image_bytes, places)))
    return shelves


def image_features(predictor: Predictor, shelves: Sequence[Shelf]) -> np.ndarray:
    """The features of all pictures, float32 (pictures, width); those kept are read, the others are kept as they come.

    Raises UserError that names a picture which can not be decoded.
    """
    made_of = _made_of(predictor)
    parts = [np.empty((0, predictor.width), np.float32)]
    for shelf in shelves:
        key, shape = hash_of(made_of, shelf.key), (len(shelf.image_ids), predictor.width)
        parts.append(_kept(key, shape, partial(_encoded, predictor, shelf, key)))
    return np.concatenate(parts)


def text_features(predictor: Predictor, texts: Sequence[str]) -> np.ndarray:
    """The features of the texts, float32 (texts, width), kept likewise."""
    key = hash_of(_made_of(predictor), list(texts))
    return np.asarray(_kept(key, (len(texts), predictor.width), lambda: iter([(0, predictor.encode_texts(texts), {})])))


def _made_of(predictor: Predictor) -> str:
    """The hash of what decides features beside their input; `weights_id` knows of architecture, tokenizer and width."""
    reached = reached_by(__name__)
    device = predictor.device.partition(":")[0]
    return hash_of(predictor.weights_id, predictor.runtime, device, predictor.precision, reached.code, reached.versions)


def _kept(key: str, shape: tuple[int, int], pieces: Callable[[], Iterator[Piece]]) -> np.ndarray:
    """The rows in their file, mapped; what is torn or damaged is made again."""
    folder = kept(KIND, key)
    if folder is not None and not whole(folder, shape[0]):
        print(f"{folder}: torn or damaged: made again", flush=True)
        shutil.rmtree(folder)
    folder = keep_in_pieces(KIND, key, lambda aside: write(aside, shape, pieces()))
    return np.load(folder / FILE, mmap_mode="r")


def _encoded(predictor: Predictor, shelf: Shelf, key: str) -> Iterator[Piece]:
    """The shelf's features from where a writer that was killed has saved them; says how far it is."""
    num_all = len(shelf.image_ids)
    first = num_saved(begun(KIND, key), (num_all, predictor.width))
    pictures, spoke = islice(shelf.read(), first, None), time.monotonic()
    while some := list(islice(pictures, READ_AT_ONCE)):
        try:
            rows = predictor.encode_images(some)
        except ValueError:
            _name_the_broken(predictor, some, shelf.image_ids[first:])
            raise
        yield first, rows, {}
        first += len(some)
        if time.monotonic() - spoke > SPEAKS_EVERY or first == num_all:
            spoke = time.monotonic()
            print(f"  {first:,} of {num_all:,} pictures encoded with {predictor.runtime}", flush=True)


def _name_the_broken(predictor: Predictor, pictures: Sequence[bytes], image_ids: Sequence[str]) -> None:
    for image_id, picture in zip(image_ids, pictures, strict=False):
        try:
            pixels_of(picture, predictor.contract.image_size, predictor.contract.preprocessing)
        except ValueError as error:
            raise UserError(f"picture {image_id}: {error}. Take it from the benchmark's source again.") from None

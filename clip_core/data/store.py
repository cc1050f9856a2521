"""Stores: a split's pictures in immutable LMDB shards, its pairs beside them, and a manifest of what was written."""

import json
import os
import threading
import weakref
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Generator, Sequence, Set
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Self

from clip_core.data.pairs import read_pairs, write_pairs
from clip_core.errors import UserError
from clip_core.files import sha256_file

if TYPE_CHECKING:
    import lmdb
    import pandas as pd

RECORDS_PER_TRANSACTION = 1000
MAP_BYTES = 2**40  # sparse: the file takes what is written; a fixed size, since LMDB records it in the file
File = tuple[Path, str]  # a shard, and its sha256: another may come to its place


class StoreWriter:
    """Writes the store of one split into a new folder; the same pictures and pairs give the same bytes."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        folder.mkdir()
        self.folder, self.shard_bytes = folder, shard_bytes
        self.image_ids: list[str] = []
        self.sums: list[str] = []  # sha256 of each record
        self.shards: list[dict] = []
        self.waiting: list[tuple[bytes, bytes]] = []
        self.shard: lmdb.Environment | None = None
        self.written = 0  # bytes of pictures in the open shard

    def add(self, image_id: str, image: bytes) -> None:
        """Appends a picture; they come in the order of their ids."""
        if self.image_ids and image_id <= self.image_ids[-1]:
            raise UserError(f"pictures must come in the order of their ids: {image_id!r} after {self.image_ids[-1]!r}")
        if self.shard is None or self.written >= self.shard_bytes:
            self._open_shard()
        self.waiting.append((_key(len(self.image_ids)), image))
        self.image_ids.append(image_id)
        self.sums.append(sha256(image).hexdigest())
        self.written += len(image)
        if len(self.waiting) == RECORDS_PER_TRANSACTION:
            self._write_waiting()

    def finish(self, pairs: "pd.DataFrame") -> dict:
        """Writes the pairs and the manifest, which it returns; every picture must be the one its pairs were made of."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._close_shard()
        pictures = pairs.dropna(subset="image_id")
        expected = dict(zip(pictures["image_id"], pictures["image_sha256"], strict=True))
        if expected != dict(zip(self.image_ids, self.sums, strict=True)):
            raise UserError(f"{self.folder.name}: the pictures are not those of the pair table. Run `dvc repro` again.")
        write_pairs(pairs, self.folder / "pairs.parquet")
        pq.write_table(pa.table({"image_id": self.image_ids, "sha256": self.sums}), self.folder / "images.parquet")
        manifest = {
            "num_images": len(self.image_ids),
            "num_pairs": len(pairs),
            "shards": [shard | {"sha256": sha256_file(self.folder / shard["file"])} for shard in self.shards],
            "sha256": {name: sha256_file(self.folder / name) for name in ("images.parquet", "pairs.parquet")},
        }
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        return manifest

    def _open_shard(self) -> None:
        import lmdb

        self._close_shard()
        name = f"images-{len(self.shards):05d}.lmdb"
        self.shards.append({"file": name, "first": len(self.image_ids)})
        file = self.folder / name
        with _told_when_full(file):
            self.shard = lmdb.open(str(file), subdir=False, map_size=MAP_BYTES, lock=False, sync=False)
        self.written = 0

    def _write_waiting(self) -> None:
        assert self.shard is not None
        with _told_when_full(self.folder), self.shard.begin(write=True) as transaction:
            for key, image in self.waiting:
                transaction.put(key, image, append=True)
        self.waiting = []

    def _close_shard(self) -> None:
        if self.shard is not None:
            self._write_waiting()
            with _told_when_full(self.folder):
                self.shard.sync(True)
            self.shard.close()
            self.shard = None


class Store:
    """A split, read: pictures by index, in the order of their ids. It may be pickled and used after a fork.

    Its files are open from the first picture read until `close`, the end of its `with` block, or that of the object.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.first_of_shard = [shard["first"] for shard in self.manifest["shards"]]
        self._hold_nothing()

    def _hold_nothing(self) -> None:
        self._files: set[File] = set()  # whose environments the store uses
        self._finalizer = weakref.finalize(self, _give_back, self._files)
        self._finalizer.atexit = False  # threads may still read; the system closes files

    def close(self) -> None:
        """Closes the files that no other store uses; no picture can be read thereafter."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.manifest["num_images"]

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "manifest": self.manifest, "first_of_shard": self.first_of_shard}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._hold_nothing()

    @cached_property
    def image_ids(self) -> list[str]:
        """The pictures' ids, sorted."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / "images.parquet", columns=["image_id"])["image_id"].to_pylist()

    @cached_property
    def pairs(self) -> "pd.DataFrame":
        """The split's pair table, with `seen`."""
        return read_pairs(self.folder / "pairs.parquet")

    def pairs_of(self, shard_numbers: Sequence[int], columns: Sequence[str]) -> "pd.DataFrame":
        """These columns of the shards' pairs, by shard and pair_id, and `image_index`: where the pair's picture is.

        A column that the store lacks is null.
        """
        import numpy as np
        import pandas as pd

        pairs = self.pairs.dropna(subset="image_id").sort_values("pair_id", kind="stable")
        index = pd.Index(self.image_ids).get_indexer(pairs["image_id"])
        shard = np.searchsorted(self.first_of_shard, index, side="right") - 1
        place = [np.flatnonzero(shard == number) for number in shard_numbers]
        rows = np.concatenate([np.empty(0, np.int64), *place])
        return pairs.iloc[rows].reindex(columns=list(columns)).assign(image_index=index[rows]).reset_index(drop=True)

    def image_bytes(self, index: int) -> bytes:
        """The encoded picture at `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        shard = self.manifest["shards"][bisect_right(self.first_of_shard, index) - 1]
        file = (self.folder.resolve() / shard["file"], shard["sha256"])
        environment = self._take(file)
        try:
            with environment.begin() as transaction:
                image = transaction.get(_key(index))
        finally:
            _give_back({file})
        if image is None:
            raise UserError(f"{self.folder / shard['file']}: picture {index} is missing. Run `dvc repro -f -s pack`.")
        return image

    def _take(self, file: File) -> "lmdb.Environment":
        """The file's environment, which the store uses from now on, and the caller until it is given back."""
        import lmdb

        try:
            with _LOCK:
                if not self._finalizer.alive:
                    raise ValueError(f"{self.folder}: this store is closed")
                if file not in _OPEN:
                    # DVC owns the file: without readonly and lock=False LMDB would write a lock beside it
                    _OPEN[file] = lmdb.open(str(file[0]), subdir=False, readonly=True, lock=False, max_readers=1)
                _USERS[file] += 1 if file in self._files else 2
                self._files.add(file)
                return _OPEN[file]
        finally:
            _close_unused()


def open_store(folder: Path) -> Store:
    """The store that the stage `pack` wrote to `folder`."""
    if not (folder / "manifest.json").exists():
        raise UserError(f"{folder}: no store here (no manifest.json). Run `dvc repro pack`.")
    return Store(folder)


# LMDB allows one environment a file and process, so that stores share them.
_OPEN: dict[File, "lmdb.Environment"] = {}
_USERS: Counter[File] = Counter()
_GIVEN_BACK: deque[Set[File]] = deque()
_LOCK = threading.Lock()  # on _OPEN and _USERS
os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


def _give_back(files: Set[File]) -> None:
    """Uses the files' environments no more; their last user closes them."""
    _GIVEN_BACK.append(files)
    _close_unused()


def _close_unused() -> None:
    """Never waits: garbage is collected at any time, also in the midst of the thread that has the lock.

    Who has it comes here when it is free again.
    """
    while _GIVEN_BACK and _LOCK.acquire(blocking=False):
        try:
            for file in _GIVEN_BACK.popleft() if _GIVEN_BACK else ():
                _USERS[file] -= 1
                if not _USERS[file]:
                    del _USERS[file]
                    _OPEN.pop(file).close()
        finally:
            _LOCK.release()


@contextmanager
def _told_when_full(path: Path) -> Generator[None]:
    """A full disk as the user's error, which LMDB's own is not."""
    import lmdb

    try:
        yield
    except lmdb.DiskError as error:
        raise UserError(f"{path}: {error}; free disk space and run again") from None


def _key(index: int) -> bytes:
    return index.to_bytes(8, "big")  # LMDB's order is then the order of the indices

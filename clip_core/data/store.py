"""Stores: a split's pictures in immutable LMDB files, its pairs beside them, and a manifest of what was written.

A store is made of shards, each with pictures and pairs of its own: stores of one shard can be joined.
"""

import json
import os
import threading
import weakref
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Self

from clip_core.data.pairs import read_pairs, write_pairs
from clip_core.errors import UserError
from clip_core.files import link_file, sha256_file

if TYPE_CHECKING:
    import lmdb
    import pandas as pd

# LMDB holds them once more until they are written, in memory that the system clears anew each time when it is much
RECORDS_PER_TRANSACTION, BYTES_PER_TRANSACTION = 1000, 2**19
MAX_OPEN = 64  # LMDB files that a store holds open at a time
MAP_BYTES = 2**40  # sparse: the file takes what is written; a fixed size, since LMDB records it in the file
File = tuple[int, int, str]  # an LMDB file whatever path leads to it, and its sha256: another may come to its place


class StoreWriter:
    """Writes a store of one shard into a new folder; the same pictures and pairs give the same bytes."""

    def __init__(self, folder: Path, file_bytes: int) -> None:
        folder.mkdir()
        self.folder, self.file_bytes = folder, file_bytes
        self.image_ids: list[str] = []
        self.sums: list[str] = []  # sha256 of each picture as it came
        self.files: list[dict] = []
        self.waiting: list[tuple[bytes, bytes]] = []
        self.waiting_bytes = 0
        self.file: lmdb.Environment | None = None
        self.written = 0  # bytes of pictures in the open file

    def add(self, image_id: str, image: bytes, stored: bytes | None = None) -> None:
        """Appends a picture; they come in the order of their ids. `stored`, if given, is written in its place."""
        if self.image_ids and image_id <= self.image_ids[-1]:
            raise UserError(f"pictures must come in the order of their ids: {image_id!r} after {self.image_ids[-1]!r}")
        if self.file is None or self.written >= self.file_bytes:
            self._open_file()
        self.waiting.append((_key(len(self.image_ids)), stored or image))
        self.image_ids.append(image_id)
        self.sums.append(sha256(image).hexdigest())
        self.written += len(stored or image)
        self.waiting_bytes += len(stored or image)
        if len(self.waiting) == RECORDS_PER_TRANSACTION or self.waiting_bytes > BYTES_PER_TRANSACTION:
            self._write_waiting()

    def finish(self, pairs: "pd.DataFrame", elsewhere: Collection[str] = ()) -> dict:
        """Writes the pairs and the manifest, which it returns; every picture must be the one its pairs were made of.

        It need not be here if it is `elsewhere`.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._close_file()
        pictures = pairs.dropna(subset="image_id")
        here = ~pictures["image_id"].isin(elsewhere) | pictures["image_id"].isin(self.image_ids)
        expected = dict(zip(pictures["image_id"][here], pictures["image_sha256"][here], strict=True))
        if expected != dict(zip(self.image_ids, self.sums, strict=True)):
            raise UserError(f"{self.folder.name}: the pictures are not those of the pair table. Run `dvc repro` again.")
        write_pairs(pairs, self.folder / "pairs.parquet")
        pq.write_table(pa.table({"image_id": self.image_ids, "sha256": self.sums}), self.folder / "images.parquet")
        shard = {
            "name": "",
            "first": 0,
            "num_images": len(self.image_ids),
            "num_pairs": len(pairs),
            "files": [file | {"sha256": sha256_file(self.folder / file["file"])} for file in self.files],
            "sha256": {name: sha256_file(self.folder / name) for name in ("images.parquet", "pairs.parquet")},
        }
        return _write_manifest([shard], self.folder)

    def _open_file(self) -> None:
        import lmdb

        self._close_file()
        name = f"images-{len(self.files):05d}.lmdb"
        self.files.append({"file": name, "first": len(self.image_ids)})
        file = self.folder / name
        with _told_when_full(file):
            self.file = lmdb.open(str(file), subdir=False, map_size=MAP_BYTES, lock=False, sync=False)
        self.written = 0

    def _write_waiting(self) -> None:
        assert self.file is not None
        with _told_when_full(self.folder), self.file.begin(write=True) as transaction:
            for key, image in self.waiting:
                transaction.put(key, image, append=True)
        self.waiting, self.waiting_bytes = [], 0

    def _close_file(self) -> None:
        if self.file is not None:
            self._write_waiting()
            with _told_when_full(self.folder):
                self.file.sync(True)
            self.file.close()
            self.file = None


def join_stores(stores: Mapping[str, Path], folder: Path) -> dict:
    """Makes the store `folder` of links to the files of others of one shard each; returns the manifest.

    The shards get the names, and come in their order; `<name>-` stands before the files of each.
    """
    folder.mkdir()
    shards: list[dict] = []
    for name, store in sorted(stores.items()):
        (shard,) = _shards_of(store)
        shards.append(_link_shard(shard, store, folder, _num_images(shards), name))
    return _write_manifest(shards, folder)


def extend_store(base: Path, name: str, added: Path | None, folder: Path) -> dict:
    """Makes the store `folder` of links to the files of `base`, with the store `added` of one shard as its last shard.

    That one gets the name, and takes the place of the shard that has it, also if nothing is `added`.
    """
    folder.mkdir()
    shards: list[dict] = []
    for shard in _shards_of(base):
        if shard["name"] != name:
            shards.append(_link_shard(shard, base, folder, _num_images(shards)))
    if added:
        (shard,) = _shards_of(added)
        shards.append(_link_shard(shard, added, folder, _num_images(shards), name))
    return _write_manifest(shards, folder)


def _link_shard(shard: dict, store: Path, folder: Path, first: int, name: str = "") -> dict:
    """Links the files of a store's shard into `folder`, with a new name before theirs; what is said of it there."""
    prefix = f"{name}-" if name else ""
    for file in (*shard["sha256"], *(file["file"] for file in shard["files"])):
        link_file(store / file, folder / f"{prefix}{file}")
    moved = first - shard["first"]
    return shard | {
        "name": name or shard["name"],
        "first": first,
        "files": [f | {"file": f"{prefix}{f['file']}", "first": moved + f["first"]} for f in shard["files"]],
        "sha256": {f"{prefix}{file}": sha256 for file, sha256 in shard["sha256"].items()},
    }


def _shards_of(store: Path) -> list[dict]:
    return json.loads((store / "manifest.json").read_text(encoding="utf-8"))["shards"]


def _num_images(shards: Sequence[dict]) -> int:
    return sum(shard["num_images"] for shard in shards)


def _write_manifest(shards: list[dict], folder: Path) -> dict:
    totals = {name: sum(shard[name] for shard in shards) for name in ("num_images", "num_pairs")}
    manifest = totals | {"shards": shards}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


class Store:
    """A split, read: pictures by index, of each shard in the order of their ids. It may be pickled, used after a fork.

    At most MAX_OPEN of its files are open, until `close`, the end of its `with` block, or that of the object.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self._hold_nothing()

    def _hold_nothing(self) -> None:
        self._known: dict[str, File] = {}  # by its name here
        self._files: dict[File, None] = {}  # whose environments the store uses, the last used last
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
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._hold_nothing()

    @cached_property
    def files(self) -> list[dict]:
        """The LMDB files: `file`, `sha256`, `first` (the index of its first picture) and `base` (of its shard's)."""
        return [file | {"base": shard["first"]} for shard in self.manifest["shards"] for file in shard["files"]]

    @cached_property
    def _first_of_file(self) -> list[int]:
        return [file["first"] for file in self.files]

    @cached_property
    def image_ids(self) -> list[str]:
        """The pictures' ids: sorted, where there is one shard. In valid and test each is there once."""
        return [image_id for shard in self.manifest["shards"] for image_id in self._image_ids(shard)]

    @cached_property
    def pairs(self) -> "pd.DataFrame":
        """The split's pair table with what curation added: of a split that fits into memory."""
        import pandas as pd

        tables = [read_pairs(self.folder / _file_of(shard, "pairs")) for shard in self.manifest["shards"]]
        return tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)

    def pairs_of(self, shards: Sequence[int], columns: Sequence[str]) -> "pd.DataFrame":
        """These columns of the shards' pairs, of each shard by pair_id, and `image_index`, the place of the picture.

        It is -1 in a text without picture. Shards are numbered as in the manifest. A column they lack is null.
        """
        import numpy as np
        import pandas as pd
        import pyarrow.parquet as pq

        tables = []
        wanted = list(dict.fromkeys([*columns, "image_id", "pair_id"]))
        for shard in (self.manifest["shards"][number] for number in shards):
            file = self.folder / _file_of(shard, "pairs")
            known = set(pq.read_schema(file).names)
            table = pq.read_table(file, columns=[name for name in wanted if name in known]).to_pandas()
            place = pd.Index(self._image_ids(shard)).get_indexer(table["image_id"])
            table["image_index"] = np.where(place < 0, place, place + shard["first"])
            tables.append(table.sort_values("pair_id", kind="stable").reindex(columns=[*columns, "image_index"]))
        return pd.concat(tables, ignore_index=True)

    def ids_of(self, images: Sequence[int]) -> list[str]:
        """The ids of the pictures at these places, with those of one shard in memory at a time."""
        firsts = [shard["first"] for shard in self.manifest["shards"]]
        shard_of, ids = {image: bisect_right(firsts, image) - 1 for image in images}, {}
        for number in set(shard_of.values()):
            of_shard = self._image_ids(self.manifest["shards"][number])
            ids |= {image: of_shard[image - firsts[number]] for image, at in shard_of.items() if at == number}
        return [ids[image] for image in images]

    def _image_ids(self, shard: dict) -> list[str]:
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / _file_of(shard, "images"), columns=["image_id"])["image_id"].to_pylist()

    def image_bytes(self, index: int) -> bytes:
        """The encoded picture at `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        held = self.files[bisect_right(self._first_of_file, index) - 1]
        path = self.folder.resolve() / held["file"]
        if (file := self._known.get(held["file"])) is None:
            state = path.stat()
            file = self._known[held["file"]] = (state.st_dev, state.st_ino, held["sha256"])
        environment = self._take(file, path)
        try:
            with environment.begin() as transaction:
                image = transaction.get(_key(index - held["base"]))
        finally:
            _give_back({file})
        if image is None:
            raise UserError(f"{path}: picture {index} is missing. Run `dvc repro -f -s pack`.")
        return image

    def _take(self, file: File, path: Path) -> "lmdb.Environment":
        """The file's environment, which the store uses from now on, and the caller until it is given back."""
        import lmdb

        try:
            with _LOCK:
                if not self._finalizer.alive:
                    raise ValueError(f"{self.folder}: this store is closed")
                if file not in _OPEN:
                    # DVC owns the file: without readonly and lock=False LMDB would write a lock beside it
                    _OPEN[file] = lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_readers=1)
                _USERS[file] += 1 if file in self._files else 2
                self._files.pop(file, None)
                self._files[file] = None
                if len(self._files) > MAX_OPEN:
                    self._files.pop(longest_unused := next(iter(self._files)))
                    _GIVEN_BACK.append({longest_unused})
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
_GIVEN_BACK: deque[Collection[File]] = deque()
_LOCK = threading.Lock()  # on _OPEN and _USERS
os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


def _give_back(files: Collection[File]) -> None:
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


def _file_of(shard: dict, name: str) -> str:
    return next(file for file in shard["sha256"] if file.endswith(f"{name}.parquet"))


def _key(index: int) -> bytes:
    return index.to_bytes(8, "big")  # LMDB's order is then the order of the indices

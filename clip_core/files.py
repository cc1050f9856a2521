"""Writing files so that a reader never sees half of one, and naming bytes by their sha256."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from clip_core.errors import UserError
from clip_core.locks import is_at, try_lock

LEFT = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.(aside|old)")  # folders: what `_make_locked` names

# What writers say of a full disk that raise no OSError with its number: DuckDB, safetensors, numpy.
SAYS_FULL = re.compile(rf"No space left on device|os error {errno.ENOSPC}\b|\d+ requested and \d+ written")

MARGIN = 16 * 2**20  # bytes that stay free


def sha256_file(path: Path) -> str:
    """The sha256 of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, data: bytes | str) -> None:
    """Writes `data` aside, syncs it and renames it onto `path`; the folder is made if need be."""
    with replacing_file(path) as aside:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing_file(path: Path) -> Generator[Path]:
    """Gives a name for a file that takes the place of `path` on success and vanishes on failure."""
    with _beside(path, "aside") as folder:
        aside = folder / path.name
        yield aside
        sync(aside)
        aside.replace(path)
    sync(path.parent)


@contextmanager
def replacing_folder(folder: Path) -> Generator[Path]:
    """Gives a temporary folder beside `folder` that takes its place on success and vanishes on failure."""
    with _beside(folder, "aside") as aside:
        aside.chmod(0o755)  # mkdtemp makes it private
        yield aside
        for path in [*aside.rglob("*"), aside]:
            path.chmod(path.stat().st_mode | 0o444)  # safetensors makes its files private
            sync(path)
        if folder.exists():
            with _beside(folder, "old") as old:
                folder.rename(old / folder.name)  # a folder can not be renamed onto a full one
                aside.rename(folder)
        else:
            aside.rename(folder)
    sync(folder.parent)


@contextmanager
def _beside(path: Path, kind: str) -> Generator[Path]:
    """A new folder beside `path` that is locked while its writer lives, and removed in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy_up_after_the_killed(path.parent)
    with named_when_full(path):
        beside, lock = _make_locked(path, kind)
        try:
            yield beside
        finally:
            _remove(beside, path)
            os.close(lock)


def _make_locked(path: Path, kind: str) -> tuple[Path, int]:
    """The new folder and the lock on it, which ends with this process at the latest."""
    while True:
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=f".{kind}", dir=path.parent))
        with suppress(FileNotFoundError):  # another writer tidied it up before it was locked: make a new one
            lock = os.open(beside, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_at(beside, lock):
                return beside, lock
            os.close(lock)


def _tidy_up_after_the_killed(folder: Path) -> None:
    """Removes what killed writers left in `folder`, whatever they wrote; what they had just moved away comes back."""
    for left in list(folder.iterdir()):
        if (match := LEFT.fullmatch(left.name)) and left.is_dir():
            _remove_unless_locked(left, folder / match["name"])


def _remove_unless_locked(left: Path, path: Path) -> None:
    try:
        lock = os.open(left, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):  # its writer is just done, or another user's
        return
    try:
        # a writer that lives has the lock; what else a folder with such a name holds is the user's: .name.20240101.old
        if try_lock(lock) and (left.suffix == ".aside" or all(moved.name == path.name for moved in left.glob("*"))):
            _remove(left, path)
    finally:
        os.close(lock)


def _remove(beside: Path, path: Path) -> None:
    """Removes the folder beside `path`; what was moved there comes back when nothing has taken its place."""
    moved = beside / path.name
    if beside.suffix == ".old" and moved.exists() and not path.exists():
        moved.rename(path)
    shutil.rmtree(beside, ignore_errors=True)


def link_file(source: Path, target: Path) -> None:
    """Makes `target` a link to the file `source`; a copy where the disk is another one, or knows no links."""
    try:
        os.link(source.resolve(), target)  # DVC's own file may be a link into its cache
    except OSError:
        shutil.copy2(source, target)


def sync(path: Path) -> None:
    """Returns when the file, or what a folder says of its entries, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_space(folder: Path, sources: Sequence[Path]) -> None:
    """Raises UserError unless the disk of `folder` has room for copies of the `sources`, and a margin."""
    needed = MARGIN + sum(
        path.stat().st_size for source in sources for path in [source, *source.rglob("*")] if path.is_file()
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        needs = f"{free // 2**20} MiB free, {-(-needed // 2**20)} MiB are needed"
        raise UserError(f"{folder}: {needs}; make room and run again")


@contextmanager
def named_when_full(path: Path) -> Generator[None]:
    """Turns a full disk into a message that says what to do."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not (full or SAYS_FULL.search(str(error))):
            raise
        free = shutil.disk_usage(path.parent).free // 2**20
        raise UserError(
            f"{path}: the disk is full ({free} MiB free); make room and run again: what is finished is kept"
        ) from None

"""Writing files so that a reader never sees half of one, and naming bytes by their sha256."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from clip_core.errors import UserError


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
    """Gives a name beside `path` for a file that takes its place on success and vanishes on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        with _named_when_full(path):
            yield aside
            _sync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def replacing_folder(folder: Path) -> Generator[Path]:
    """Gives a temporary folder beside `folder` that takes its place on success and vanishes on failure."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _tidy_up_after_the_killed(folder)
    aside, lock = _make_beside(folder, "aside")
    aside.chmod(0o755)  # mkdtemp makes it private
    try:
        with _named_when_full(folder):
            yield aside
            for path in [*aside.rglob("*"), aside]:
                path.chmod(path.stat().st_mode | 0o444)  # safetensors makes its files private
                _sync(path)
        if folder.exists():
            old, lock_of_old = _make_beside(folder, "old")
            try:
                folder.rename(old / folder.name)  # a folder can not be renamed onto a full one
                aside.rename(folder)
                shutil.rmtree(old)
            finally:
                os.close(lock_of_old)
        else:
            aside.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(lock)


def _make_beside(folder: Path, kind: str) -> tuple[Path, int]:
    """A new folder beside `folder`, and the lock on it, which ends with this process at the latest."""
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=f".{kind}", dir=folder.parent))
    lock = os.open(beside, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return beside, lock


def _tidy_up_after_the_killed(folder: Path) -> None:
    """Removes what killed processes left beside `folder`; it comes back if they had just moved it away."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}\.(aside|old)")
    for left in [path for path in folder.parent.iterdir() if name.fullmatch(path.name)]:
        try:
            lock = os.open(left, os.O_RDONLY)
        except FileNotFoundError:  # its process is just done
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if left.suffix == ".old" and (left / folder.name).exists() and not folder.exists():
                (left / folder.name).rename(folder)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:  # its process is alive
            pass
        finally:
            os.close(lock)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named_when_full(path: Path) -> Generator[None]:
    """Turns a full disk into a message that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free // 2**20
        raise UserError(
            f"{path}: the disk is full ({free} MiB free); make room and run again: what is finished is kept"
        ) from None

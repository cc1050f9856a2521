"""Results kept by the hash of what they are made of, so that nothing is made twice; lists and empties them.

    python -m clip_core.kept [--empty KIND ...]

A result is a folder that never changes. Others link to its files; removing it costs time, and nothing else.
"""

import argparse
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from clip_core.errors import UserError, told_to_the_user
from clip_core.files import replacing_folder, sha256_file, sync
from clip_core.locks import is_at, try_lock
from clip_core.project import project_root

KEPT = Path(".work/kept")


def kept(kind: str, key: str) -> Path | None:
    """The folder of the result with this key, if it is there."""
    folder = KEPT / kind / key
    if not folder.is_dir():
        return None
    os.utime(folder)  # when it was last of use
    return folder


def keep(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of the result with this key, which `make` fills unless it is there."""
    folder = KEPT / kind / key
    if not folder.is_dir():
        with replacing_folder(folder) as aside:
            make(aside)
    return folder


def keep_in_pieces(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """As `keep`, for what takes long: `make` finds what it had written when it was killed, and is never at work twice.

    A second process that wants the same waits for the first.
    """
    folder, aside = KEPT / kind / key, begun(kind, key)
    while not folder.is_dir():
        aside.mkdir(parents=True, exist_ok=True)
        lock = os.open(aside, os.O_RDONLY)
        try:
            if not try_lock(lock):
                print(f"{folder}: another process makes it; waiting for that", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_at(aside, lock):  # the other one has made it
                continue
            if folder.is_dir():  # it had, a moment before this one began
                aside.rmdir()
                continue
            make(aside)
            aside.rename(folder)
            sync(folder.parent)
        finally:
            os.close(lock)
    return folder


def begun(kind: str, key: str) -> Path:
    """Where `keep_in_pieces` has what is not whole yet."""
    return KEPT / kind / f".{key}.begun"


def hashes_of(files: Sequence[Path]) -> list[str]:
    """Each file's sha256; one that has kept its inode, size and time since it was asked before is not read again."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(KEPT / "sha256.sqlite", timeout=60)) as known, known:
        known.execute("CREATE TABLE IF NOT EXISTS known (state TEXT PRIMARY KEY, sha256 TEXT)")
        states = [_state_of(file) for file in files]
        found = dict(row for state in states for row in known.execute("SELECT * FROM known WHERE state = ?", (state,)))
        unknown = {state: file for state, file in zip(states, files, strict=True) if state not in found}
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets other threads compute
            for (state, file), sha256 in zip(unknown.items(), pool.map(_sha256_of, unknown.values()), strict=True):
                found[state] = sha256
                if _is_settled(file):
                    known.execute("INSERT OR REPLACE INTO known VALUES (?, ?)", (state, sha256))
        return [found[state] for state in states]


def mark_of(file: Path) -> str:
    """What changes when the file's bytes do, found without reading it unless it was written this moment."""
    return _state_of(file) if _is_settled(file) else sha256_file(file)


def _is_settled(file: Path) -> bool:
    """Whether its state tells its bytes: a file may change twice between two ticks of the clock."""
    return time.time_ns() - file.stat().st_mtime_ns > 2e9


def _state_of(file: Path) -> str:
    try:
        return state_of(file)
    except OSError as error:
        raise UserError(f"{file}: can not be read: {error.strerror}") from None


def _sha256_of(file: Path) -> str:
    try:
        return sha256_file(file)
    except OSError as error:
        raise UserError(f"{file}: can not be read: {error.strerror}") from None


def state_of(file: Path) -> str:
    """What changes when the file's bytes do: its inode, size and time; raises OSError where there is none."""
    status = file.stat()
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def listed() -> list[tuple[str, int, int, float]]:
    """Of each kind the number of results, the bytes of all, also unfinished ones, and when one was last of use.

    In seconds since 1970.
    """
    found = []
    for kind in sorted(path for path in KEPT.glob("*") if path.is_dir()):
        results = [path for path in kind.iterdir() if not path.name.startswith(".")]
        size = sum(file.stat().st_size for file in kind.rglob("*") if file.is_file())
        found.append((kind.name, len(results), size, max((result.stat().st_mtime for result in results), default=0.0)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="results kept so that nothing is made twice")
    parser.add_argument("--empty", nargs="+", metavar="KIND", help="remove the results of these kinds (or: all)")
    arguments = parser.parse_args()
    with told_to_the_user():
        os.chdir(project_root())
        there = {kind for kind, *_ in listed()}
        asked = there if arguments.empty == ["all"] else set(arguments.empty or ())
        if unknown := asked - there:
            raise UserError(f"nothing of the kind {', '.join(sorted(unknown))} is kept; there is {sorted(there)}")
        for kind in sorted(asked):
            shutil.rmtree(KEPT / kind)
            print(f"{kind}: removed")
        for kind, number, size, last in listed():
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(last))
            print(f"{kind:10} {number:7,} results {size / 2**20:10,.1f} MiB, last used {used}")


if __name__ == "__main__":
    main()

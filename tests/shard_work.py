"""Work on shards that tests map: of a module, so that other processes find it."""

import os
import signal
import time
from pathlib import Path

from clip_core.data.shards import record_files
from clip_core.errors import UserError


def reverse(file: Path, out: Path) -> None:
    """Writes the file's letters backwards, and one more mark into `<file>.log` for each time it was done."""
    with file.with_suffix(".log").open("a", encoding="utf-8") as log:
        log.write("x")
    (out / "reversed.txt").write_text(file.read_text(encoding="utf-8")[::-1], encoding="utf-8")


def reverse_slowly(file: Path, out: Path) -> None:
    time.sleep(0.5)
    reverse(file, out)


def reverse_or_be_killed(file: Path, out: Path) -> None:
    """The first one that is asked for `kill` dies; a second time it lives."""
    if file.read_text(encoding="utf-8") == "kill" and not (marker := file.with_suffix(".died")).exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    reverse_slowly(file, out)


def refuse(file: Path, out: Path) -> None:
    if file.read_text(encoding="utf-8") == "bad":
        raise UserError(f"{file}: bad")
    reverse(file, out)


def reverse_with_neighbour(file: Path, neighbour: Path, out: Path) -> None:
    reverse(file, out)
    record_files([neighbour], out)

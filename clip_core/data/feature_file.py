"""A shard's features as one plain .npy, written piece by piece: a writer that is killed goes on after its last save.

Beside it `about.json` says how many rows are there, the checksum of the file so far, and which pictures are broken.
"""

import hashlib
import io
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clip_core.config.section import Section
from clip_core.files import atomic_write, named_when_full
from clip_core.kept import hashes_of

FILE, ABOUT = "features.npy", "about.json"
SAVES_EVERY = 10.0  # seconds
READ_AT_ONCE = 2**24  # bytes

Broken = dict[int, str]  # row -> why its picture can not be decoded
Piece = tuple[int, np.ndarray, Broken]  # the first row's place, rows, and which of them are of broken pictures


class About(Section):
    """What is known of the first `num_rows` rows."""

    num_rows: int
    broken: Broken
    sha256: str  # of the file, as far as these rows go


def whole(folder: Path, num_rows: int) -> About | None:
    """What is said of the features in `folder`; None where they are torn or damaged, or not `num_rows`."""
    about = _about(folder)
    try:
        is_whole = about is not None and about.num_rows == num_rows and hashes_of([folder / FILE]) == [about.sha256]
    except ValueError:  # can not be read
        return None
    return about if is_whole else None


def num_saved(folder: Path, shape: tuple[int, int]) -> int:
    """How many rows a writer that was killed has left; 0 where they are torn or damaged."""
    try:
        with (folder / FILE).open("rb") as file:
            return _saved(folder, file, shape)[0].num_rows
    except FileNotFoundError:
        return 0


def write(folder: Path, shape: tuple[int, int], pieces: Iterable[Piece]) -> None:
    """Fills `folder` with float32 rows of this shape; pieces that are there already are passed over."""
    with named_when_full(folder / FILE), (folder / FILE).open("a+b") as file:
        about, digest = _saved(folder, file, shape)
        header = _header(shape)
        if about.num_rows == 0:
            file.truncate(0)
            file.write(header)
        else:  # after the last save there may be half a piece
            file.truncate(len(header) + about.num_rows * shape[1] * 4)
        saved = time.monotonic()
        for first, rows, broken in pieces:
            if first < about.num_rows:
                continue
            assert first == about.num_rows, f"{folder}: changed by others while it was made"
            data = rows.astype("<f4").tobytes()
            file.write(data)
            digest.update(data)
            about = About(num_rows=first + len(rows), broken=about.broken | broken, sha256=digest.hexdigest())
            if about.num_rows == shape[0] or time.monotonic() - saved > SAVES_EVERY:
                file.flush()
                os.fsync(file.fileno())  # before anything says that these rows are there
                atomic_write(folder / ABOUT, about.model_dump_json())
                saved = time.monotonic()


def _about(folder: Path) -> About | None:
    try:
        return About.model_validate_json((folder / ABOUT).read_bytes())
    except (OSError, ValueError):  # none yet, or damaged
        return None


def _saved(folder: Path, file: BinaryIO, shape: tuple[int, int]) -> tuple[About, "hashlib._Hash"]:
    """What is said of the rows in the open file, if it is true, and the digest up to there."""
    header, about = _header(shape), _about(folder)
    if about:
        digest, left = hashlib.sha256(), len(header) + about.num_rows * shape[1] * 4
        file.seek(0)
        while part := file.read(min(left, READ_AT_ONCE)):
            digest.update(part)
            left -= len(part)
        if digest.hexdigest() == about.sha256:
            return about, digest
    return About(num_rows=0, broken={}, sha256=""), hashlib.sha256(header)


def _header(shape: tuple[int, int]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()

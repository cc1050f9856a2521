"""A shard's features as one plain .npy, written piece by piece: a writer that is killed goes on after its last save.

Beside it `about.json` says how many rows are there, the checksum of the file so far, and which pictures are broken.
"""

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
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
Pieces = Callable[[int], Iterator[tuple[np.ndarray, Broken]]]  # the first row wanted -> it and all after it


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


def write(folder: Path, shape: tuple[int, int], pieces: Pieces) -> None:
    """Fills `folder` with float32 rows of this shape, from where an earlier call was killed on."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with named_when_full(folder / FILE), (folder / FILE).open("a+b") as file:
        about = _about(folder) or About(num_rows=0, broken={}, sha256="")
        num_bytes = len(header.getvalue()) + about.num_rows * shape[1] * 4
        digest = _digest(file, num_bytes)
        if digest.hexdigest() != about.sha256:  # nothing has been saved, or it is torn or damaged
            about, num_bytes, digest = about.model_copy(update={"num_rows": 0, "broken": {}}), 0, hashlib.sha256()
        file.truncate(num_bytes)  # what came after the last save may be half a piece
        if num_bytes == 0:
            file.write(header.getvalue())
            digest.update(header.getvalue())
        saved = time.monotonic()
        for rows, broken in pieces(about.num_rows):
            data = rows.astype("<f4").tobytes()
            file.write(data)
            digest.update(data)
            about = About(num_rows=about.num_rows + len(rows), broken=about.broken | broken, sha256=digest.hexdigest())
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


def _digest(file: BinaryIO, num_bytes: int) -> "hashlib._Hash":
    """Of the first bytes of an open file; of fewer where there are no more."""
    digest = hashlib.sha256()
    file.seek(0)
    while part := file.read(min(num_bytes, READ_AT_ONCE)):
        digest.update(part)
        num_bytes -= len(part)
    return digest

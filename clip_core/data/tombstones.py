"""Deletion requests: what no stage, gallery or release may hold any more, in a file of hashes.

A line names a column of the pair table and the sha256 of the value that may not stand there (of a picture's bytes
their own); what follows is for people. `python -m flows.forget` writes it.
"""

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.errors import UserError
from clip_core.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FILE = Path("tombstones.txt")  # in a project, and in a folder of releases
REASON = "deletion request"  # of a row that is rejected for one
COLUMNS = ("image_id", "image_sha256", "caption", "source")
LINE = re.compile(rf"({'|'.join(COLUMNS)}) ([0-9a-f]{{64}})(\s.*)?")
Tombstones = frozenset[tuple[str, str]]  # (column, sha256)


def tombstones_for(value: str, columns: Iterable[str] = COLUMNS) -> Tombstones:
    """Those that hit every row with the value in one of the columns."""
    return frozenset((column, _digest(column, value)) for column in columns)


def read_tombstones(file: Path) -> Tombstones:
    """What the file holds, nothing where there is none; UserError names a line that is no tombstone."""
    marks, lines = set(), file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            if not (match := LINE.fullmatch(line)):
                raise UserError(f"{file}, line {number}: {line!r} is no tombstone; take the file back from git")
            marks.add((match[1], match[2]))
    return frozenset(marks)


def add_tombstones(file: Path, marks: Tombstones) -> None:
    """Adds those that the file does not hold, with today's date."""
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    today = datetime.now(UTC).date().isoformat()
    new = [f"{column} {digest} {today}\n" for column, digest in sorted(marks - read_tombstones(file))]
    atomic_write(file, before + "".join(new))


def is_hit(rows: "pd.DataFrame", marks: Collection[tuple[str, str]]) -> "np.ndarray":
    """Whether each row is one to be deleted: bool (rows,).

    Columns that the rows lack hit nothing; `caption_sha256` stands for a caption that is not there itself.
    """
    import numpy as np

    hit = np.zeros(len(rows), bool)
    for column in COLUMNS:
        digests = {digest for of, digest in marks if of == column}
        hashed = next((name for name in (f"{column}_sha256", column) if name in rows), None)
        if digests and hashed:
            values = rows[hashed].dropna().unique()
            named = [value for value in values if (value if hashed != column else _digest(column, value)) in digests]
            hit |= rows[hashed].isin(named).to_numpy(bool)
    return hit


def _digest(column: str, value: str) -> str:
    return value if column == "image_sha256" else sha256(value.encode()).hexdigest()

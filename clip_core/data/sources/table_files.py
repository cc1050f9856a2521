"""Which tables a folder has, and what their parts are called."""

import re
from hashlib import sha256
from pathlib import Path

from clip_core.config.sources import TableSource
from clip_core.errors import UserError

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
LONGEST_NAME = 80


def files_of(data: TableSource) -> list[Path]:
    """The tables that `data.table` means, in the order of their names."""
    folder = Path(data.path)
    if is_one_file(data):
        assert data.table
        if not data.table.lower().endswith(ENDINGS):
            raise UserError(f"{folder / data.table}: the ending of `data.table` must be one of {', '.join(ENDINGS)}")
        return [folder / data.table]
    named = folder / (data.table or "")
    found = named.iterdir() if named.is_dir() else folder.glob(data.table or "*")
    files = sorted(file for file in found if file.name.lower().endswith(ENDINGS) and file.is_file())
    if not files:
        raise UserError(
            f"{named}: no table there ({', '.join(ENDINGS)}). `data.path` names the folder, `data.table` a table, a "
            f"folder or a glob in it."
        )
    return files


def is_one_file(data: TableSource) -> bool:
    """Whether `data.table` names one file, be it there or not."""
    if data.table is None:
        return False
    named = Path(data.path) / data.table
    return named.is_file() or not (named.is_dir() or re.search(r"[*?\[]", data.table))


def part_name(file: str, number: int) -> str:
    """The name of a file's part: that of the file where it is as plain as a shard's must be."""
    plain = re.sub(r"[^a-z0-9.]+", "-", file.lower())[:LONGEST_NAME]
    return f"{plain if plain == file else f'{plain}-{sha256(file.encode()).hexdigest()[:12]}'}-{number:05d}"

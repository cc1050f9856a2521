"""The rows of many files in DuckDB, which puts on disk what memory does not hold."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY = "768MB"


def connected(spilled: Path, file: Path | None = None) -> "DuckDBPyConnection":
    """A database in `file`, or in memory; what is above MEMORY lies in the folder `spilled`. It asks no network."""
    import duckdb

    config = {
        "memory_limit": MEMORY,
        "temp_directory": str(spilled),
        "threads": min(4, os.cpu_count() or 1),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    return duckdb.connect(file or ":memory:", config=config)


def add_view(database: "DuckDBPyConnection", view: str, files: Sequence[Path]) -> None:
    """A view of the rows of parquet files, each with the place of its file (`shard`) and its own in that (`row`)."""
    names = [quoted(str(file)) for file in files]
    numbered = ", ".join(f"({name}, {shard})" for shard, name in enumerate(names))
    database.execute(
        f"CREATE TEMP VIEW {view} AS SELECT * EXCLUDE (filename, file_row_number), file_row_number AS row "
        f"FROM read_parquet([{', '.join(names)}], filename = true, file_row_number = true) "
        f"JOIN (VALUES {numbered}) AS shards(filename, shard) USING (filename)"
    )


def quoted(text: str) -> str:
    """A literal of SQL."""
    return "'" + text.replace("'", "''") + "'"

"""What the readers of the table formats share: a file is cut into spans, and a span gives records."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, get_args

from clip_core.config.sources import TableColumn, TableSource
from clip_core.errors import UserError

COLUMNS: tuple[str, ...] = get_args(TableColumn)
BOM = b"\xef\xbb\xbf"
IDS = ("image_id", "text_id")  # may be numbers
REQUIRED = ("image", "caption")
SPAN_RECORDS, SPAN_BYTES = 50_000, 2**26  # of text, at most, in a span
LONGEST_LINE = 2**24  # bytes of a record: beyond it a file is broken as a whole
LONGEST_RECORD = 2**20  # bytes: what is longer is refused by itself
Cell = str | bytes | None


def take(records: Iterator[Any], offset: Callable[[], int]) -> Iterator[tuple[int, Any]]:
    """The next records with their numbers from 1, as many as a span may hold; `offset` is how far the file is read."""
    start = offset()
    for numbered in enumerate(islice(records, SPAN_RECORDS), start=1):
        yield numbered
        if offset() - start >= SPAN_BYTES:
            return


class Span(NamedTuple):
    """The records of a file that one part reads."""

    line: int  # where the first one starts, from 1; in parquet the number of its row
    offset: int  # the same in bytes; in parquet 0
    num_records: int
    digest: str  # of their bytes, and of the header's; in parquet none


class Record(NamedTuple):
    """A record's cells under our names, null where it has none, or why it can not be used."""

    line: int
    cells: dict[str, Cell]
    fault: str | None = None


def names_of(data: TableSource) -> dict[str, str]:
    """What each of our columns is called in the tables."""
    return {name: (data.columns or {}).get(name, name) for name in COLUMNS}


def check_columns(where: str, header: list[str], names: dict[str, str]) -> None:
    """Raises UserError unless all that must be there is there once."""
    wanted = [called for name, called in names.items() if name in REQUIRED or called != name]
    if missing := [called for called in wanted if called not in header]:
        raise UserError(
            f"{where}: no column {' and no column '.join(missing)}; the header is {header[:50]}. "
            f"`data.columns` says what they are called there."
        )
    if repeated := [called for called in names.values() if header.count(called) > 1]:
        raise UserError(f"{where}: the column {repeated[0]} stands there more than once")


@contextmanager
def opened(file: Path) -> Generator[BinaryIO]:
    """The file, opened; one that can not be is named."""
    try:
        stream = file.open("rb")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file. `data.path` names the folder, `data.table` the table in it.") from None
    except OSError as error:
        raise UserError(
            f"{file}: can not be read: {error.strerror}. `data.table` names a table in `data.path`."
        ) from None
    with stream:
        yield stream


def lines_of(stream: BinaryIO, file: Path, line: int) -> Iterator[bytes]:
    """The lines from here on, one in memory at a time; `line` is the number of the first."""
    while content := stream.readline(LONGEST_LINE + 1):
        if len(content) > LONGEST_LINE:
            raise UserError(f"{file}, line {line}: longer than {LONGEST_LINE:,} bytes; is this the right file?")
        yield content
        line += 1

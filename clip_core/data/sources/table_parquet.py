"""Parquet: a span is some row groups, or some rows of a large one."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.data.sources.table_records import (
    IDS,
    SPAN_RECORDS,
    Cell,
    Record,
    Span,
    check_columns,
    opened,
)
from clip_core.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SPAN_BYTES = 128 * 2**20
MOST_ROWS, BATCH_BYTES = 512, 2**29  # in memory at a time, were each value as large as its row group


def spans_of(file: Path, names: dict[str, str]) -> Iterator[Span]:
    """Cuts the file at its row groups; raises UserError for a column that is missing or of a wrong type."""
    with opened_parquet(file) as parquet:
        check_columns(f"{file}", parquet.schema_arrow.names, names)
        check_types(file, parquet.schema_arrow, names)
        first = 0
        for num_rows in _cut(parquet.metadata):
            yield Span(first + 1, 0, num_rows, "")
            first += num_rows


def records_of(file: Path, span: Span, names: dict[str, str]) -> Iterator[Record]:
    """The records of the span; a record's line is its row's number in the file, from 1."""
    with opened_parquet(file) as parquet:
        called = {name: column for name, column in names.items() if column in parquet.schema_arrow.names}
        for line, batch in _batches(parquet, span.line - 1, span.num_records, list(called.values())):
            columns = [_cells(batch[column]) for column in called.values()]
            for row, cells in enumerate(zip(*columns, strict=True), start=line):
                yield Record(row, dict(zip(called, cells, strict=True)))


@contextmanager
def opened_parquet(file: Path) -> Generator["pq.ParquetFile"]:
    """The file, opened; one that is broken, here or where it is read, is named."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(file) as stream:
        try:
            # no more than a page is in memory beside the rows; Thrift's limits: a hostile footer makes no millions
            yield pq.ParquetFile(
                stream,
                pre_buffer=False,
                buffer_size=2**20,
                thrift_string_size_limit=2**26,
                thrift_container_size_limit=2**20,
            )
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
            first, *_ = str(error).splitlines() or [type(error).__name__]
            raise UserError(f"{file}: not a whole parquet file: {first[:300]}. Make it or fetch it anew.") from None


def check_types(file: Path, schema: "pa.Schema", names: dict[str, str]) -> None:
    """Raises UserError that names the first column whose type can not be read."""
    for name, called in names.items():
        if called not in schema.names:
            continue
        kind = schema.field(called).type
        if not (_is_text(kind) or (name == "image" and _is_picture(kind)) or (name in IDS and _is_number(kind))):
            wanted = "a path, a URL, bytes or {bytes, path}" if name == "image" else "text"
            raise UserError(f"{file}: the column {called} has the type {kind}, and {wanted} is wanted as {name}")


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow.types as t

    plain = kind.value_type if t.is_dictionary(kind) else kind
    return t.is_string(plain) or t.is_large_string(plain) or t.is_string_view(plain) or t.is_null(plain)


def _is_bytes(kind: "pa.DataType") -> bool:
    import pyarrow.types as t

    return t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind)


def _is_picture(kind: "pa.DataType") -> bool:
    import pyarrow.types as t

    if not t.is_struct(kind):
        return _is_bytes(kind)
    fields = {field.name: field.type for field in kind}
    return (
        len(fields) == kind.num_fields
        and "bytes" in fields
        and (_is_bytes(fields["bytes"]) or t.is_null(fields["bytes"]))
        and ("path" not in fields or _is_text(fields["path"]))
    )


def _is_number(kind: "pa.DataType") -> bool:
    import pyarrow.types as t

    return t.is_integer(kind)


def _cut(metadata: "pq.FileMetaData") -> Iterator[int]:
    """How many rows each span has: of row groups as many as are small together, of a large one some rows."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if any(group.num_rows < 0 for group in groups) or sum(group.num_rows for group in groups) != metadata.num_rows:
        raise ValueError(f"its row groups have not the {metadata.num_rows} rows that it says")
    num_rows = num_bytes = 0
    for group in groups:
        if num_rows and (num_rows + group.num_rows > SPAN_RECORDS or num_bytes + group.total_byte_size > SPAN_BYTES):
            yield num_rows
            num_rows = num_bytes = 0
        num_rows, num_bytes = num_rows + group.num_rows, num_bytes + group.total_byte_size
        while num_rows > SPAN_RECORDS:
            yield SPAN_RECORDS
            num_rows -= SPAN_RECORDS
    if num_rows or not metadata.num_rows:
        yield num_rows


def _batches(
    parquet: "pq.ParquetFile", first: int, num_rows: int, columns: list[str]
) -> Iterator[tuple[int, "pa.RecordBatch"]]:
    """The rows from `first` on, some at a time, with the number of each batch's first row, from 1."""
    groups, before, line, largest = [], 0, 0, 1
    for index in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(index)
        if before < first + num_rows and before + group.num_rows > first:
            line = line or before + 1
            groups.append(index)
            largest = max(largest, group.total_byte_size)
        before += group.num_rows
    # One value of a dictionary may stand in all rows: of a large group only some are decoded at a time. (A column's own
    # size is not asked for: on a broken footer that ends the process.)
    size = max(1, min(MOST_ROWS, BATCH_BYTES // largest))
    for batch in parquet.iter_batches(size, row_groups=groups, columns=columns, use_threads=False):
        start, stop = max(line, first + 1), min(line + len(batch), first + num_rows + 1)
        if start < stop:
            yield start, batch.slice(start - line, stop - start)
        line += len(batch)
        if line > first + num_rows:
            return


def _cells(array: "pa.Array") -> list[Cell]:
    """Text (with surrogates where it is no UTF-8), numbers as text, bytes; of {bytes, path} the one that is there."""
    import pyarrow as pa
    import pyarrow.types as t

    if t.is_struct(array.type):
        parts = dict(zip((field.name for field in array.type), map(_cells, array.flatten()), strict=True))
        paths = parts.get("path", [None] * len(array))
        return [path if data is None else data for data, path in zip(parts["bytes"], paths, strict=True)]
    if _is_bytes(array.type):
        return array.to_pylist()
    if _is_number(array.type):
        return [None if number is None else str(number) for number in array.to_pylist()]
    encoded = (array.dictionary_decode() if t.is_dictionary(array.type) else array).cast(pa.large_binary())
    return [None if text is None else text.decode("utf-8", "surrogateescape") for text in encoded.to_pylist()]

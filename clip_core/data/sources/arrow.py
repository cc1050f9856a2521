"""The record batches of an Arrow stream in a file, as they lie: none is believed before it is checked."""

import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

END = b"\xff\xff\xff\xff\0\0\0\0"  # closes a stream; without it a file was cut off


def schema_in(file: Path) -> "pa.Schema":
    """The columns of the file; raises UserError unless it is a whole stream."""
    import pyarrow as pa

    with _damage_named(file), pa.memory_map(str(file)) as opened, pa.ipc.open_stream(opened) as stream:
        schema = stream.schema
        for field in schema:
            _read_names(field)
    with file.open("rb") as ending:
        ending.seek(max(0, file.stat().st_size - len(END)))
        if ending.read() != END:
            raise UserError(f"{file}: its end is missing: it was cut off. Save the data set again.")
    return schema


def batches_in(file: Path, names: list[str], begins: range) -> Iterator[tuple[int, "pa.RecordBatch"]]:
    """The batches that begin in `begins`, with the number of their first row (from 0), and these columns only."""
    import pyarrow as pa

    places = [schema_in(file).get_field_index(name) for name in names]
    options = pa.ipc.IpcReadOptions(included_fields=places)
    first = 0
    with _damage_named(file), pa.memory_map(str(file)) as opened, pa.memory_map(str(file)) as again:
        messages, stream = pa.ipc.MessageReader.open_stream(again), pa.ipc.open_stream(opened, options=options)
        messages.read_next_message()  # the schema
        while (at := opened.tell()) < begins.stop:
            try:
                message = messages.read_next_message()
            except StopIteration:
                return
            if message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
                raise UserError(f"{file}, byte {at}: compressed or in dictionaries; `save_to_disk` writes neither")
            batch = stream.read_next_batch()
            if at in begins:
                batch.validate(full=True)
                yield first, batch
            first += batch.num_rows


def _read_names(field: "pa.Field") -> None:
    """Raises UnicodeDecodeError where the field, or one in it, has a name that is no text: later is too late."""
    assert field.name is not None
    for i in range(field.type.num_fields):
        _read_names(field.type.field(i))


@contextmanager
def _damage_named(file: Path) -> Generator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, StopIteration, UnicodeDecodeError, struct.error) as error:
        raise UserError(f"{file}: no Arrow stream, or a damaged one: {error}. Save the data set again.") from None


def _is_compressed(message: bytes) -> bool:
    """Whether the buffers of a record batch are compressed: then they could become larger than any memory.

    By Arrow's Message.fbs: the third field of a message is its header, the fourth of a record batch its compression.
    """
    message_at = struct.unpack_from("<I", message)[0]
    header = _field(message, message_at, 2)
    return bool(_field(message, header + struct.unpack_from("<I", message, header)[0], 3))


def _field(buffer: bytes, table: int, number: int) -> int:
    """Where the field of a flatbuffers' table lies; 0 where the table has none."""
    described = table - struct.unpack_from("<i", buffer, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", buffer, described)[0]:
        return 0
    offset = struct.unpack_from("<H", buffer, described + 4 + 2 * number)[0]
    return table + offset if offset else 0

"""CSV and TSV: records may span lines, and quotes may hold both separators."""

import csv
import io
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from clip_core.data.sources.table_records import (
    BOM,
    LONGEST_LINE,
    LONGEST_RECORD,
    Cell,
    Record,
    Span,
    check_columns,
    lines_of,
    opened,
    take,
)
from clip_core.errors import UserError


class Text:
    """The lines of an opened file as text, and how far they have been read."""

    def __init__(self, stream: BinaryIO, file: Path, line: int, offset: int) -> None:
        stream.seek(offset)
        self.stream, self.file, self.line, self.offset = stream, file, line, offset
        self.start_line, self.start = line, offset  # of the record that is being read
        self.digest = sha256()

    def __iter__(self) -> Iterator[str]:
        for content in lines_of(self.stream, self.file, self.line):
            self.digest.update(content)
            has_bom = self.offset == 0 and content.startswith(BOM)
            self.offset += len(BOM) if has_bom else 0
            text = self._decoded(content[len(BOM) :] if has_bom else content)
            for line in io.StringIO(text, newline="") if "\r" in text else (text,):  # a lone CR ends a line, too
                self.offset += len(line.encode())
                self.line += 1
                if self.offset - self.start > LONGEST_LINE:
                    raise UserError(
                        f"{self.file}, line {self.start_line}: a record of more than {LONGEST_LINE:,} bytes. "
                        f"Is a quote open?"
                    )
                yield line

    def _decoded(self, content: bytes) -> str:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.file}, line {self.line}: not UTF-8 (byte 0x{content[error.start]:02x}). Convert it, for "
                f"example with `iconv -f GB18030 -t UTF-8`."
            ) from None


def spans_of(file: Path, names: dict[str, str]) -> Iterator[Span]:
    """Cuts the file; raises UserError that names the line where it is no table of pairs."""
    with opened(file) as stream:
        text = Text(stream, file, 1, 0)
        records = split_records(text)
        header = _header_of(records)
        check_columns(f"{file}, line 1", header, names)
        of_header, is_first = text.digest, True
        while True:
            line, offset, text.digest, num_records = text.line, text.offset, of_header.copy(), 0
            for num_records, _ in take(records, lambda: text.offset):  # noqa: B007 - used behind the loop
                pass
            if not num_records and not is_first:
                return
            yield Span(line, offset, num_records, text.digest.hexdigest())
            is_first = False


def records_of(file: Path, span: Span, names: dict[str, str]) -> Iterator[Record]:
    """The records of the span, each with the line where it starts."""
    with opened(file) as stream:
        header = _header_of(split_records(Text(stream, file, 1, 0)))
        ours = {called: name for name, called in names.items()}
        text = Text(stream, file, span.line, span.offset)
        for line, cells in islice(split_records(text), span.num_records):
            row: dict[str, Cell] = dict.fromkeys((name for name, called in names.items() if called in header), "")
            row |= {ours[called]: cell for called, cell in zip(header, cells, strict=False) if called in ours}
            is_long = text.offset - text.start > LONGEST_RECORD
            is_whole = len(cells) == len(header)
            yield Record(line, row, "record_too_long" if is_long else None if is_whole else "wrong_number_of_cells")


def split_records(text: Text) -> Iterator[tuple[int, list[str]]]:
    """The records that are not empty, each with the line where it starts."""
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(text, delimiter="\t" if text.file.suffix.lower() == ".tsv" else ",", strict=True)
    while True:
        line, text.start_line, text.start = text.line, text.line, text.offset
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{text.file}, line {line}: not CSV: {error}. Is a quote open?") from None
        if cells is None:
            return
        if cells:
            yield line, cells


def _header_of(records: Iterator[tuple[int, list[str]]]) -> list[str]:
    _, header = next(records, (1, []))
    return [name.strip() for name in header]

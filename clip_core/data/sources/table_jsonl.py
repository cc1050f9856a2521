"""JSONL: an object a line."""

import json
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from clip_core.data.sources.table_records import (
    BOM,
    IDS,
    LONGEST_RECORD,
    Cell,
    Record,
    Span,
    lines_of,
    opened,
    take,
)


def spans_of(file: Path, _names: dict[str, str]) -> Iterator[Span]:
    """Cuts the file. A line that is no JSON is a record as well, which its reader refuses."""
    with opened(file) as stream:
        records, is_first = split_records(stream, file, 1), True
        line, offset = 1, 0
        while True:
            digest, num_records, end = sha256(), 0, line
            for num_records, (end, content) in take(records, stream.tell):  # noqa: B007 - used behind the loop
                digest.update(content)
            if not num_records and not is_first:
                return
            yield Span(line, offset, num_records, digest.hexdigest())
            line, offset, is_first = end + 1, stream.tell(), False


def records_of(file: Path, span: Span, names: dict[str, str]) -> Iterator[Record]:
    """The records of the span."""
    with opened(file) as stream:
        stream.seek(span.offset)
        for line, content in islice(split_records(stream, file, span.line), span.num_records):
            yield record_of(line, content, names)


def split_records(stream: BinaryIO, file: Path, line: int) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers; `line` is that of the first."""
    for number, content in enumerate(lines_of(stream, file, line), start=line):
        content = content.removeprefix(BOM) if number == 1 else content
        if content.strip():
            yield number, content


def record_of(line: int, content: bytes, names: dict[str, str]) -> Record:
    """The record of a line."""
    if len(content) > LONGEST_RECORD:
        return Record(line, {}, "record_too_long")
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=each_once)
    except UnicodeDecodeError:
        return Record(line, {}, "not_utf8")
    except KeyError:
        return Record(line, {}, "key_repeated")
    except (ValueError, RecursionError):
        return Record(line, {}, "not_json")
    if not isinstance(found, dict):
        return Record(line, {}, "not_an_object")
    cells: dict[str, Cell] = {}
    fault = None
    for name, called in names.items():
        value = found.get(called)
        if isinstance(value, int) and not isinstance(value, bool) and name in IDS:
            value = str(value)
        if value is None or isinstance(value, str):
            cells[name] = value
        else:
            fault = fault or f"{name}_not_text"
    return Record(line, cells, fault)


def each_once(items: list[tuple[str, object]]) -> dict[str, object]:
    """The object of a JSON text; raises KeyError where a key comes again."""
    found = dict(items)
    if len(found) < len(items):
        raise KeyError
    return found

"""Lines of JSON about texts and pictures, in the reference's formats: read with the line of every mistake."""

import json
from collections.abc import Iterator
from pathlib import Path

from clip_core.errors import UserError

Id = int | str
ASKED = {"text_id": "image_ids", "image_id": "text_ids"}  # who asks, and the key of the answers


def read_records(file: Path) -> Iterator[tuple[int, dict]]:
    """Each line's number, from 1, and its object; empty lines are passed over."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _object(file, number, line)
    except OSError as error:
        raise UserError(f"{file}: can not be read: {error.strerror}") from None


def _object(file: Path, number: int, line: bytes) -> dict:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}, line {number}: no JSON ({error}); one object a line is wanted") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}, line {number}: {line[:40]!r} is no object {{...}}")
    return found


def read_answers(file: Path) -> tuple[str, dict[str, list[str]]]:
    """Which id asks (`text_id` or `image_id`), and for each of them the ids of its answers, all as texts."""
    answers: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    asks = None
    for line, record in read_records(file):
        where = f"{file}, line {line}"
        found = next((key for key, others in ASKED.items() if key in record and others in record), None)
        if found is None:
            raise UserError(f"{where}: neither text_id with image_ids nor image_id with text_ids in it")
        if asks not in (None, found):
            raise UserError(f"{where}: {found}, but the lines before have {asks}; one way a file")
        asks, given = found, record[ASKED[found]]
        query = _id(where, record[found])
        if query in lines:
            raise UserError(f"{where}: {found} {query} is there already, in line {lines[query]}; remove one")
        if not isinstance(given, list):
            raise UserError(f"{where}: {ASKED[found]} of {query} is {given!r:.40}, and a list is wanted")
        ids = [_id(where, one) for one in given]
        if len(set(ids)) < len(ids):
            twice = next(name for place, name in enumerate(ids) if name in ids[:place])
            raise UserError(f"{where}: {ASKED[found]} of {query} holds {twice} twice")
        answers[query], lines[query] = ids, line
    if asks is None:
        raise UserError(f"{file}: no line in it")
    return asks, answers


def plain_id(name: str) -> Id:
    """The id as the source had it: a number where it is one, without the split that ours begin with."""
    own = name.rpartition("/")[2]
    return int(own) if own.isascii() and own.isdecimal() and str(int(own)) == own else own


def _id(where: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise UserError(f"{where}: {value!r:.40} is no id: a number or a text is wanted")
    return str(value)

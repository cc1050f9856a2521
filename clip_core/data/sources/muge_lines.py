"""The lines of the reference's two files: base64 pictures (`_imgs.tsv`), and texts that name them (`_texts.jsonl`)."""

import binascii
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pybase64

from clip_core.data.sources.folders import LONGEST_TEXT, shown
from clip_core.data.sources.table_jsonl import each_once
from clip_core.data.sources.table_records import BOM
from clip_core.errors import UserError

LONGEST_LINE = 2**27  # bytes: a file without line ends is none of these
READ_AT_ONCE = 2**20  # bytes: lines of pictures are longer than the usual buffer
LONGEST_CAPTION, LONGEST_ID = 2**14, 2**10  # characters; an id of pictures may have fourfold as many bytes
URLSAFE = bytes.maketrans(b"-_", b"+/")
SURROGATE = re.compile("[\ud800-\udfff]")
OF_TEXT = ("text_id", "text", "image_ids")


class Line(NamedTuple):
    number: int
    offset: int
    content: bytes


class Picture(NamedTuple):
    """Where a picture's base64 lies, or why the line gives none."""

    line: int
    offset: int
    length: int
    image_id: str
    sha256: str  # of the picture
    fault: str | None


class Text(NamedTuple):
    """A text and the pictures that it names, each once, or why the line gives none."""

    line: int
    text_id: str | None
    caption: str | None
    image_ids: tuple[str, ...]
    fault: str | None


def pictures_in(file: Path) -> Iterator[Picture]:
    """What each line that is not blank says, one picture in memory at a time."""
    for line in lines_of(file):
        key, tab, encoded = line.content.partition(b"\t")
        image_id, fault = _image_id_of(key.strip())
        image = decoded(encoded)
        if not encoded.strip() or not (image_id or fault):
            fault = "no_id_and_base64"
        elif not image:
            fault = fault or "not_base64"
        place = (line.offset + len(key) + len(tab), len(encoded))
        yield Picture(line.number, *place, image_id, sha256(image).hexdigest(), fault)


def _image_id_of(key: bytes) -> tuple[str, str | None]:
    if len(key) > 4 * LONGEST_ID:
        return shown(key[:LONGEST_ID].decode("utf-8", "replace")), "image_id_too_long"
    try:
        return key.decode("utf-8").strip(), None
    except UnicodeDecodeError:
        return shown(key.decode("utf-8", "backslashreplace")), "image_id_not_utf8"


def decoded(encoded: bytes) -> bytes:
    """The bytes of standard or urlsafe base64; none where it is neither."""
    encoded = encoded.strip()
    if b"-" in encoded or b"_" in encoded:
        encoded = encoded.translate(URLSAFE)
    try:
        padding = b"=" * (-len(encoded) % 4)
        return pybase64.b64decode(encoded + padding if padding else encoded, validate=True)
    except binascii.Error:
        return b""


def texts_in(file: Path) -> Iterator[Text]:
    """What each line that is not blank says, one in memory at a time."""
    for line in lines_of(file):
        yield _text_of(line)


def _text_of(line: Line) -> Text:
    if len(line.content) > LONGEST_TEXT:
        return Text(line.number, None, None, (), "line_too_long")
    try:
        found = json.loads(line.content.decode("utf-8"), object_pairs_hook=each_once)
    except UnicodeDecodeError:
        return Text(line.number, None, None, (), "not_utf8")
    except KeyError:
        return Text(line.number, None, None, (), "key_repeated")
    except (ValueError, RecursionError):
        return Text(line.number, None, None, (), "not_json")
    text_id, caption, image_ids = (found.get(name) if isinstance(found, dict) else None for name in OF_TEXT)
    if not (_is_id(text_id) and isinstance(caption, str) and isinstance(image_ids, list)):
        return Text(line.number, None, None, (), "no_text_id_text_and_image_ids")
    text_id, caption = str(text_id).strip(), caption.strip()
    if fault := _fault_of(text_id, caption, image_ids):
        return Text(line.number, shown(text_id), shown(caption), (), fault)
    return Text(line.number, text_id, caption, tuple(dict.fromkeys(str(key).strip() for key in image_ids)), None)


def _fault_of(text_id: str, caption: str, image_ids: list) -> str | None:
    """Why the whole line gives no text, or None."""
    if not caption:
        return "text_blank"
    if not all(map(_is_id, image_ids)):
        return "image_ids_are_no_ids"
    ids = [text_id, *map(str, image_ids)]
    if any(map(SURROGATE.search, [caption, *ids])):
        return "not_unicode"
    if max(map(len, ids)) > LONGEST_ID:
        return "id_too_long"
    return "text_too_long" if len(caption) > LONGEST_CAPTION else None


def _is_id(value: object) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and bool(value.strip()))


def lines_of(file: Path) -> Iterator[Line]:
    """The lines that are not blank, one in memory at a time."""
    try:
        opened = file.open("rb", buffering=READ_AT_ONCE)
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such file. `data.path` names the folder; `data.train`, `valid` and `test` the files in it."
        ) from None
    except OSError as error:
        raise UserError(f"{file}: can not be read: {error.strerror}. `data` in params.yaml names it.") from None
    with opened:
        number, offset = 0, len(BOM) if opened.read(len(BOM)) == BOM else 0
        opened.seek(offset)
        while content := opened.readline(LONGEST_LINE):
            number += 1
            if len(content) == LONGEST_LINE:
                raise UserError(f"{file}, line {number}: longer than {LONGEST_LINE:,} bytes; is this the right file?")
            if content.strip():
                yield Line(number, offset, content)
            offset += len(content)

"""The members of a tar, header by header: nothing is extracted, and no link is followed."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from clip_core.errors import UserError

BLOCK = 512
EMPTY = bytes(BLOCK)
LONGEST_HEADER = 2**20  # bytes of what a long name and the like may take
LONGEST_TAIL = 2**20  # bytes behind the end mark: writers fill up the last record
# The format's type letters: POSIX 1003.1 (pax) and GNU's.
FILES, LINKS, FOLDER, PAX, GNU_NAME, GNU_LINK, PAX_OF_ALL = b"0\x007", b"12", b"5", b"x", b"L", b"K", b"g"
WITHOUT_DATA = b"123456"
LENGTH = re.compile(rb"(\d{1,7}) ")  # of a record of a pax header, with itself


class Member(NamedTuple):
    number: int  # from 1
    name: str  # bytes that are no UTF-8 are lone surrogates, as in the names of files
    kind: str  # file, folder, link or special
    start: int  # of its headers
    offset: int  # of its bytes
    size: int


class Header(NamedTuple):
    name: bytes
    kind: bytes
    size: int


def members_of(tar: BinaryIO, path: Path) -> Iterator[Member]:
    """The members in their order; raises UserError that names the byte where the file is no tar."""
    end = tar.seek(0, os.SEEK_END)
    number, at, start, told = 1, 0, 0, {}
    while header := _header_at(tar, at, path, number):
        kind, size = _kind_of(header, told), header.size
        if "size" in told and header.kind not in (PAX, GNU_NAME, GNU_LINK, PAX_OF_ALL):
            size = told["size"]
        offset, size = at + BLOCK, 0 if header.kind in WITHOUT_DATA else size
        if offset + size > end:
            raise UserError(
                f"{path}, byte {at}: member {number} should have {size:,} bytes, and the file ends before: it was cut "
                f"off, or its header lies. Fetch or write the tar again, or take it away."
            )
        at = offset + -(-size // BLOCK) * BLOCK
        if kind == "about":
            told |= _told_at(tar, offset, header, path)
            continue
        name = told.get("path", header.name).decode("utf-8", "surrogateescape")
        yield Member(number, name, kind, start, offset, size)
        number, start, told = number + 1, at, {}
    _check_tail(tar, at, end, path)


def _header_at(tar: BinaryIO, at: int, path: Path, number: int) -> Header | None:
    """The header there; None for the end mark."""
    tar.seek(at)
    block = tar.read(BLOCK)
    if len(block) < BLOCK:
        raise UserError(
            f"{path}, byte {at}: ends after member {number - 1} without the empty block that closes a tar: it was cut "
            f"off. Fetch or write it again, or take it away."
        )
    if block == EMPTY:
        return None
    try:
        if _number(block[148:156]) != sum(block) - sum(block[148:156]) + sum(b" " * 8):  # its own field as spaces
            raise ValueError("its checksum is another")
        name, prefix = (field.split(b"\0")[0] for field in (block[:100], block[345:500]))
        is_posix = block[257:263] == b"ustar\0"  # GNU has other things in the place of the prefix
        return Header(prefix + b"/" + name if prefix and is_posix else name, block[156:157], _number(block[124:136]))
    except ValueError as error:
        remedy = "Unpack it if it is compressed" if at == 0 else "Fetch or write it again, or take it away"
        raise UserError(f"{path}, byte {at}: no header of a tar's member {number}: {error}. {remedy}.") from None


def _number(field: bytes) -> int:
    """The number in a header: octal digits, or, behind 0x80, in base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.split(b"\0")[0].strip()
    if digits and not digits.isdigit():
        raise ValueError(f"{digits!r} is no number")
    return int(digits or b"0", 8)


def _kind_of(header: Header, told: dict) -> str:
    if header.kind in (PAX, GNU_NAME, GNU_LINK, PAX_OF_ALL):
        return "about"
    if header.kind == FOLDER or (header.kind in FILES and header.name.endswith(b"/")):
        return "folder"
    if header.kind in LINKS:
        return "link"
    return "file" if header.kind in FILES and not told.get("is_sparse") else "special"


def _told_at(tar: BinaryIO, offset: int, header: Header, path: Path) -> dict:
    """What headers before that of a member say about it: `path`, `size`, `is_sparse`."""
    if header.size > LONGEST_HEADER:
        raise UserError(
            f"{path}, byte {offset}: a header of {header.size:,} bytes; at most {LONGEST_HEADER:,} are read"
        )
    tar.seek(offset)
    content = tar.read(header.size)
    if header.kind == GNU_NAME:
        return {"path": content.split(b"\0")[0]}
    if header.kind != PAX:
        return {}
    told, at = {}, 0
    while match := LENGTH.match(content, at):
        record = content[match.end() : at + int(match[1])]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or not record.endswith(b"\n"):
            break
        if key == b"path":
            told["path"] = value
        elif key == b"size" and value.isdigit() and len(value) < 20:
            told["size"] = int(value)
        elif key.startswith(b"GNU.sparse."):
            told["is_sparse"] = True
        at += int(match[1])
    if at < len(content):
        raise UserError(f"{path}, byte {offset + at}: a pax header that can not be read. Write the tar again.")
    return told


def _check_tail(tar: BinaryIO, at: int, end: int, path: Path) -> None:
    """Raises UserError where something follows the end mark: another tar would be left out without a word."""
    tar.seek(at)
    if end - at > LONGEST_TAIL or any(tar.read(end - at)):
        raise UserError(
            f"{path}, byte {at}: the tar ends here, and {end - at:,} bytes follow. Are these several tars in one file? "
            f"Unpack them and make one tar, or several files."
        )

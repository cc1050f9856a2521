"""From a table's record to a row of the pair table, or the reason why it can be none."""

import re
from hashlib import sha256
from typing import NamedTuple

from clip_core.config.sources import TableSource
from clip_core.data.pairs import HELD_OUT
from clip_core.data.sources.split import split_of
from clip_core.data.sources.table_pictures import LARGEST, Picture, Pictures
from clip_core.data.sources.table_records import REQUIRED, Record

SURROGATE = re.compile("[\ud800-\udfff]")
LONGEST, LONGEST_NAME = 2**14, 2**10  # characters of a caption or place of a picture, of all else
SHOWN = 1000  # characters of a refused record's cells


class Row(NamedTuple):
    """A record whose picture is known by its place."""

    line: int
    cells: dict[str, str]  # stripped; but for `image`, which is in `picture`
    picture: Picture | None
    fault: str | None

    @property
    def image_id(self) -> str | None:
        """The record's own id of its picture, or the picture's."""
        return (self.cells.get("image_id") or self.picture.image_id) if self.picture else None


def row_of(record: Record, pictures: Pictures) -> Row:
    """The record, ready to be judged; the bytes of its picture leave the memory."""
    image = record.cells.get("image")
    texts = {name: cell.strip() for name, cell in record.cells.items() if isinstance(cell, str)}
    fault = record.fault or next(filter(None, map(_fault_of_cell, texts, texts.values())), None)
    if isinstance(image, bytes) and len(image) > LARGEST:
        fault = fault or "image_too_large"
    if fault:  # then the memory has no use for more than what is shown
        return Row(record.line, {name: cell[:SHOWN] for name, cell in texts.items()}, None, fault)
    return Row(record.line, texts, pictures.picture_of(image), None)


def _fault_of_cell(name: str, cell: str) -> str | None:
    if SURROGATE.search(cell):  # no Unicode; readers also make them of bytes that are no UTF-8
        return f"{name}_not_unicode"
    return f"{name}_too_long" if len(cell) > (LONGEST if name in REQUIRED else LONGEST_NAME) else None


class Judge:
    """Says why a row can be no pair; it remembers what the ids before it stand for."""

    def __init__(self, data: TableSource, pictures: Pictures) -> None:
        self.data, self.pictures = data, pictures
        self.by_id: dict[str, Picture] = {}  # of the rows that were good
        self.hashes: dict[Picture, bytes] = {}  # of pictures that had to be compared
        self.captions: dict[str, str] = {}  # by the text ids that records gave

    def fault_of(self, row: Row) -> str | None:
        """Why the row is no pair, no picture of valid or test without text and no text without picture, or None."""
        if row.fault:
            return row.fault
        may_be_alone = split_in(row, self.data) in HELD_OUT
        if not row.cells.get("caption") and not (row.picture and may_be_alone):
            return "caption_blank"
        if not row.picture:
            return self._fault_of_text(row) if may_be_alone else "image_blank"
        if fault := self.pictures.fault_of(row.picture):
            return fault
        assert row.image_id
        known = self.by_id.get(row.image_id, row.picture)
        if known != row.picture and self._hash_of(known) != self._hash_of(row.picture):
            return "image_id_with_other_picture"
        if fault := self._fault_of_text(row):
            return fault
        self.by_id[row.image_id] = known
        return None

    def _fault_of_text(self, row: Row) -> str | None:
        text_id, caption = row.cells.get("text_id"), row.cells.get("caption")
        is_other = text_id and caption and self.captions.setdefault(text_id, caption) != caption
        return "text_id_with_other_caption" if is_other else None

    def _hash_of(self, picture: Picture) -> bytes:
        if picture not in self.hashes:
            self.hashes[picture] = sha256(self.pictures.read(picture)).digest()
        return self.hashes[picture]


def pair_of(row: Row, place: str, data: TableSource) -> dict[str, str | None]:
    """The pair of a good row, or what it has of one; `place` names it among the rows with its picture."""
    caption = row.cells.get("caption") or None
    language = (row.cells.get("language") or "zh") if caption else None
    own = f"{language}-caption-{sha256(caption.encode()).hexdigest()[:24]}" if caption else None
    return {
        "pair_id": f"{row.image_id or ''}/{place}",
        "image_id": row.image_id,
        "text_id": (row.cells.get("text_id") or own) if caption else None,
        "caption": caption,
        "language": language,
        "caption_kind": "caption" if caption else None,
        "concept_id": None,
        "family": None,
        "group": None,
        "split": split_in(row, data),
        "source": "table",
        "licence": row.cells.get("licence") or data.licence or "unknown",
    }


def shown(row: Row) -> dict[str, str | int | None]:
    """What the quarantine says of a refused row beside its reason."""
    texts = {
        "image_id": row.cells.get("image_id") or row.cells.get("image") or row.image_id,
        "text_id": row.cells.get("text_id"),
        "caption": row.cells.get("caption"),
    }
    return {"line": row.line} | {
        name: text and text[:SHOWN].encode("utf-8", "replace").decode() for name, text in texts.items()
    }


def split_in(row: Row, data: TableSource) -> str | None:
    """The split that the record names; in a table without the column, that of its picture."""
    if (split := row.cells.get("split")) is not None:
        return split
    return split_of(row.image_id, data.valid_percent, data.test_percent) if row.image_id else None

"""A user's own pairs: a folder of pictures with a CSV of their captions."""

import csv
import io
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from clip_core.config.sources import TableSource
from clip_core.data.pairs import HELD_OUT, ORIGIN
from clip_core.data.sources import Harvest, Part
from clip_core.data.sources.split import split_of
from clip_core.errors import UserError

REQUIRED, OPTIONAL = ("image", "caption"), ("split", "language")


class Record(NamedTuple):
    """A record of the CSV; `line` is where it starts."""

    line: int
    cells: list[str]


def parts_of(data: TableSource) -> list[Part]:
    return [Part("table", (Path(data.path) / data.table,))]


def harvest(data: TableSource, _part: Part) -> Harvest:
    """The pairs of the CSV. A record that can not be a pair is refused by itself; a CSV that can not be read, whole.

    In valid and test a record without caption is a picture that no text names, one without image a text that has none.
    """
    import pandas as pd

    folder, file = Path(data.path), Path(data.path) / data.table
    header, records = read_csv(file)
    pairs, rejected = [], []
    for record in records:
        row = dict(zip(header, record.cells, strict=False))
        if reason := fault_of(header, record, folder, data):
            shown = {"image_id": row.get("image", ""), "caption": row.get("caption", "")}
            rejected.append(shown | {"reason": reason, "file": str(file), "line": record.line})
        else:
            pairs.append(pair_of(row, record.line, data))
    if not any(pair["image_id"] and pair["text_id"] for pair in pairs):
        raise UserError(f"{file}: not one of its {len(rejected)} records is a pair; the first: {first_of(rejected)}")
    image_ids = sorted({pair["image_id"] for pair in pairs if pair["image_id"]})
    return Harvest(
        pairs=pd.DataFrame(pairs),
        images=((image_id, (folder / image_id).read_bytes()) for image_id in image_ids),
        rejected=pd.DataFrame(rejected, columns=[*ORIGIN, "image_id", "caption"]),
    )


def read_csv(file: Path) -> tuple[list[str], Iterator[Record]]:
    """The header and the records; raises UserError that names the line where the file is no CSV of pairs."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file. `data.path` names the folder, `data.table` the CSV in it.") from None
    except OSError as error:
        raise UserError(
            f"{file}: can not be read: {error.strerror}. `data.table` names a CSV in `data.path`."
        ) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}). Convert it, for example with "
            f"`iconv -f GB18030 -t UTF-8`."
        ) from None
    records = split_records(file, text)
    _, header = next(records, Record(1, []))
    header = [name.strip() for name in header]
    if missing := [name for name in REQUIRED if name not in header]:
        raise UserError(f"{file}, line 1: no column {' and no column '.join(missing)}; the header is {header}")
    if repeated := [name for name in (*REQUIRED, *OPTIONAL) if header.count(name) > 1]:
        raise UserError(f"{file}, line 1: the column {repeated[0]} stands there more than once")
    return header, records


def split_records(file: Path, text: str) -> Iterator[Record]:
    """The records that are not empty, each with the line where it starts."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield Record(line, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{file}, line {line}: not CSV: {error}. Is a quote open?") from None


def fault_of(header: list[str], record: Record, folder: Path, data: TableSource) -> str | None:
    """Why the record can not be a pair, or None."""
    if len(record.cells) != len(header):
        return "wrong_number_of_cells"
    row = dict(zip(header, record.cells, strict=True))
    has_image, has_caption = bool(row["image"].strip()), bool(row["caption"].strip())
    may_be_alone = split_in(row, data) in HELD_OUT
    if not has_caption and not (has_image and may_be_alone):
        return "caption_blank"
    if not has_image:
        return None if may_be_alone else "image_blank"
    picture = folder / image_id_of(row)
    if "\0" in str(picture) or not os.path.isfile(picture):  # noqa: PTH113 - unlike Path's, never raises
        return "image_missing"
    is_inside = Path(os.path.realpath(picture)).is_relative_to(os.path.realpath(folder))  # also through links
    if not is_inside:
        return "image_outside_folder"
    return None if _can_be_read(picture) else "image_unreadable"


def _can_be_read(picture: Path) -> bool:
    try:
        with picture.open("rb") as file:
            file.read(1)
    except OSError:
        return False
    return True


def image_id_of(row: dict[str, str]) -> str:
    """The picture's path in the folder, in its shortest form: one picture has one id."""
    return os.path.normpath(row["image"].strip())


def pair_of(row: dict[str, str], line: int, data: TableSource) -> dict[str, str | None]:
    """The pair of a good record, or what it has of one."""
    image_id = image_id_of(row) if row["image"].strip() else None
    caption = row["caption"].strip() or None
    language = (row.get("language", "").strip() or "zh") if caption else None
    return {
        "pair_id": f"{image_id or ''}/line-{line}",
        "image_id": image_id,
        "text_id": f"{language}-caption-{sha256(caption.encode()).hexdigest()[:12]}" if caption else None,
        "caption": caption,
        "language": language,
        "caption_kind": "caption" if caption else None,
        "concept_id": None,
        "family": None,
        "group": None,
        "split": split_in(row, data),
        "source": "table",
        "licence": data.licence,
    }


def split_in(row: dict[str, str], data: TableSource) -> str | None:
    """The split that the record names; in a CSV without the column, that of its picture."""
    if "split" in row:
        return row["split"].strip()
    if not row["image"].strip():
        return None
    return split_of(image_id_of(row), data.valid_percent, data.test_percent)


def first_of(rejected: list[dict]) -> str:
    """The first refused record in words."""
    return f"line {rejected[0]['line']}, {rejected[0]['reason']}" if rejected else "there is none"

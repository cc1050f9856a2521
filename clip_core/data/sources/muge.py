"""The reference's format: a table of base64 pictures (`_imgs.tsv`) with texts that name them (`_texts.jsonl`)."""

import base64
import binascii
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from clip_core.config.sources import MugeSource
from clip_core.data.pairs import HELD_OUT, ORIGIN, SPLITS
from clip_core.data.sources import Harvest, Part
from clip_core.errors import UserError

LONGEST_LINE = 2**27  # bytes: a file without line ends is none of these
URLSAFE = bytes.maketrans(b"-_", b"+/")


class Place(NamedTuple):
    """Where a picture's base64 lies: pictures are read one at a time, as all of them would not fit into memory."""

    file: Path
    offset: int
    length: int


class Line(NamedTuple):
    number: int
    offset: int
    content: bytes


def parts_of(data: MugeSource) -> list[Part]:
    names = [name for name in (data.train, data.valid, data.test) if name is not None]
    endings = ("_imgs.tsv", "_texts.jsonl")
    return [Part("muge", tuple(Path(data.path) / f"{name}{ending}" for name in names for ending in endings))]


def harvest(data: MugeSource, _part: Part) -> Harvest:
    """The pairs of all splits, one for each text and picture that it names. What can be none is refused by itself.

    In valid and test a picture that no text names, and a text that names no picture, is a row of its own, since the
    reference searches all of them; training has no use for either.
    """
    import pandas as pd

    rows, rejected, places, unused = [], [], {}, 0
    for split, name in zip(SPLITS, (data.train, data.valid, data.test), strict=True):
        if name is None:
            continue
        pictures, bad_pictures = index_of(Path(data.path) / f"{name}_imgs.tsv")
        found, bad_texts = pairs_of(Path(data.path) / f"{name}_texts.jsonl", split, pictures, data)
        named = {row["image_id"] for row in found}
        unnamed = [row_of(name, split, None, key, data) for key in pictures if f"{name}/{key}" not in named]
        found += (candidates := [row for row in unnamed if row["split"] in HELD_OUT])
        unused += len(unnamed) - len(candidates)
        kept = {row["image_id"] for row in found}
        places |= {f"{name}/{key}": place for key, place in pictures.items() if f"{name}/{key}" in kept}
        rows += found
        rejected += bad_pictures + bad_texts
    return Harvest(
        pairs=pd.DataFrame(rows),
        images=((image_id, picture_at(places[image_id])) for image_id in sorted(places)),
        rejected=pd.DataFrame(rejected, columns=[*ORIGIN, "image_id", "text_id", "caption"]),
        more={
            "training_pictures_that_no_text_names": unused,
            "pictures_without_text": sum(row["text_id"] is None for row in rows),
            "texts_without_picture": sum(row["image_id"] is None for row in rows),
        },
    )


def index_of(file: Path) -> tuple[dict[str, Place], list[dict]]:
    """Where each picture lies, by id, and the lines that hold none."""
    places: dict[str, Place] = {}
    rejected = []
    for line in lines_of(file):
        key, tab, encoded = line.content.partition(b"\t")
        image_id = key.decode("utf-8", "replace").strip()
        place = Place(file, line.offset + len(key) + len(tab), len(encoded))
        if reason := fault_of_picture(image_id, encoded, places):
            rejected.append({"reason": reason, "file": str(file), "line": line.number, "image_id": image_id[:200]})
        else:
            places[image_id] = place
    return places, rejected


def fault_of_picture(image_id: str, encoded: bytes, known: dict[str, Place]) -> str | None:
    """Why the line gives no picture, or None."""
    if not image_id or not encoded.strip():
        return "no_id_and_base64"
    if image_id in known:
        return "image_id_repeated"
    return None if decoded(encoded) else "not_base64"


def decoded(encoded: bytes) -> bytes:
    """The bytes of standard or urlsafe base64; none where it is neither."""
    encoded = encoded.strip().translate(URLSAFE)
    try:
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        return b""


def picture_at(place: Place) -> bytes:
    """The encoded picture that lies there."""
    with place.file.open("rb") as file:
        file.seek(place.offset)
        return decoded(file.read(place.length))


def pairs_of(file: Path, split: str, pictures: dict[str, Place], data: MugeSource) -> tuple[list[dict], list[dict]]:
    """The pairs of the texts with their pictures, and the lines, or pictures of a line, that make none.

    In valid and test a text none of whose pictures is there is a row without one.
    """
    name = file.name.removesuffix("_texts.jsonl")
    rows, rejected, text_ids, num_texts, num_pairs, num_unlabelled = [], [], set(), 0, 0, 0
    for line in lines_of(file):
        num_texts += 1
        origin = {"file": str(file), "line": line.number}
        text = text_of(line.content)
        if not isinstance(text, str) and text["text_id"] in text_ids:
            text = "text_id_repeated"
        elif not isinstance(text, str) and not text["image_ids"]:
            num_unlabelled += 1
            text = text if split in HELD_OUT else "no_image_ids"
        if isinstance(text, str):
            rejected.append(origin | {"reason": text})
            continue
        text_ids.add(text["text_id"])
        keys = list(dict.fromkeys(map(str, text["image_ids"])))
        found = [row_of(name, split, text, key, data) for key in keys if key in pictures]
        num_pairs += len(found)
        rows += found or ([row_of(name, split, text, None, data)] if split in HELD_OUT else [])
        rejected += [
            origin | {"reason": "image_missing", "image_id": f"{name}/{key}", "caption": text["text"]}
            for key in keys
            if key not in pictures
        ]
    if num_texts and num_unlabelled == num_texts:
        raise UserError(
            f"{file}: none of its {num_texts} texts names a picture: its answers are not published, so nothing "
            f"can be measured on it. Name another in `data.{split}` (MUGE: `test: valid` and `valid: null`)."
        )
    if not num_pairs:
        first = f"line {rejected[0]['line']}, {rejected[0]['reason']}" if rejected else "there is none"
        raise UserError(f"{file}: not one of its {num_texts} lines makes a pair; the first: {first}")
    return rows, rejected


def text_of(content: bytes) -> dict | str:
    """The line's text_id (a string), text and image_ids, or why it is no such line."""
    try:
        found = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        return "not_utf8"
    except json.JSONDecodeError:
        return "not_json"
    is_whole = isinstance(found, dict) and isinstance(found.get("text"), str)
    if not is_whole or not _is_id(found.get("text_id")) or not isinstance(found.get("image_ids"), list):
        return "no_text_id_text_and_image_ids"
    if not found["text"].strip():
        return "text_blank"
    if not all(map(_is_id, found["image_ids"])):
        return "image_ids_are_no_ids"
    return {"text_id": str(found["text_id"]), "text": found["text"].strip(), "image_ids": found["image_ids"]}


def _is_id(value: object) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and bool(value.strip()))


def row_of(name: str, split: str, text: dict | None, key: str | None, data: MugeSource) -> dict[str, str | None]:
    """The pair of a text and the picture `key`, or one alone; the files' name keeps the splits' numbers apart."""
    is_valid = split == "train" and data.valid is None and key is not None and _percent(key) < data.valid_percent
    return {
        "pair_id": f"{name}/{text['text_id'] if text else ''}/{key or ''}",
        "image_id": f"{name}/{key}" if key else None,
        "text_id": f"{name}/{text['text_id']}" if text else None,
        "caption": text["text"] if text else None,
        "language": "zh" if text else None,
        "caption_kind": "caption" if text else None,
        "concept_id": None,
        "family": None,
        "group": None,
        "split": "valid" if is_valid else split,
        "source": "muge",
        "licence": data.licence,
    }


def _percent(key: str) -> int:
    return int.from_bytes(sha256(key.encode()).digest()[:4]) % 100


def lines_of(file: Path) -> Iterator[Line]:
    """The lines that are not blank, one in memory at a time."""
    try:
        opened = file.open("rb")
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such file. `data.path` names the folder; `data.train`, `valid` and `test` the files in it."
        ) from None
    except OSError as error:
        raise UserError(f"{file}: can not be read: {error.strerror}. `data` in params.yaml names it.") from None
    with opened:
        number = offset = 0
        while content := opened.readline(LONGEST_LINE):
            number += 1
            if len(content) == LONGEST_LINE:
                raise UserError(f"{file}, line {number}: longer than {LONGEST_LINE:,} bytes; is this the right file?")
            if content.strip():
                yield Line(number, offset, content)
            offset += len(content)

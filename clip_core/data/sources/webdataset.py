"""Tars in the manner of WebDataset, as img2dataset writes them: a picture with `.txt` and `.json` of the same name."""

import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from clip_core.config.sources import WebDatasetSource
from clip_core.data.sources import Harvest, Part
from clip_core.data.sources.downloads import downloads_in, files_beside
from clip_core.data.sources.folders import (
    LONGEST_PICTURE,
    LONGEST_TEXT,
    PICTURES,
    files_in,
    shard_name,
    shown,
)
from clip_core.data.sources.rows import Origin, Record, Rows
from clip_core.data.sources.tar import Member, members_of
from clip_core.errors import UserError

TAR_BYTES = 2**29  # of a part: each part looks at the headers of the whole tar, so many would take long
KINDS = dict.fromkeys(PICTURES, "picture") | {".txt": "txt", ".json": "json"}
TOLD = ("caption", "split", "language", "licence")  # by a sample's JSON; none has to be there


@dataclass
class Sample:
    """What the members of one name are."""

    number: int  # of the first of them
    picture: Member | None = None
    text: str = ""
    told: dict[str, str] = field(default_factory=dict)
    fault: str | None = None


def parts_of(data: WebDatasetSource) -> list[Part]:
    """A tar is a part; one that is much larger is cut, by the place in it where samples begin."""
    parts = []
    for entry in files_in(folder := Path(data.path)):
        tar = Path(entry.path)
        if tar.suffix != ".tar":
            continue
        if not tar.is_file():
            raise UserError(f"{tar}: no file, or a link to none. Take it away or put the tar there.")
        stem = _stem_of(tar, folder)
        num_pieces = max(1, round(tar.stat().st_size / TAR_BYTES))
        for i in range(num_pieces):
            name = shard_name(stem if num_pieces == 1 else f"{stem}#{i}")
            parts.append(Part(name, (tar, *(files_beside(tar) if i == 0 else ())), (i, num_pieces)))
    if not parts:
        raise UserError(f"{folder}: no file *.tar in it. `data.path` names the folder of img2dataset's tars.")
    return parts


def _stem_of(tar: Path, folder: Path) -> str:
    """The tar's name in the folder: the ids of its pictures begin with it."""
    stem = tar.relative_to(folder).with_suffix("").as_posix()
    if stem != shown(stem):
        raise UserError(f"{folder / shown(stem)}.tar: a name in UTF-8 of at most 200 characters is wanted; rename it.")
    return stem


def harvest(data: WebDatasetSource, part: Part) -> Harvest:
    """The samples that begin in the part's piece of the tar, each by itself a pair or a rejected row."""
    tar, beside, (piece, num_pieces) = part.reads[0], part.reads[1:], map(int, part.at)
    stem, rows, places = _stem_of(tar, Path(data.path)), Rows(data), {}
    size = tar.stat().st_size
    with tar.open("rb") as file:
        begins = range(piece * size // num_pieces, (piece + 1) * size // num_pieces)
        samples, num_others = samples_in(file, tar, begins)
    for (key, turn), sample in samples.items():
        image_id, origin = f"{stem}/{key}", Origin(str(tar), sample.number)
        if sample.fault or turn:
            rows.reject(sample.fault or "key_repeated", origin, image_id)
            continue
        caption = sample.text or sample.told.pop("caption", "")
        told = {name: value for name, value in sample.told.items() if name != "caption"}
        has_picture = sample.picture is not None
        if rows.add(Record(image_id, has_picture, (caption,) * bool(caption), origin, **told)) and has_picture:
            places[image_id] = sample.picture
    return rows.harvest(_pictures_at(tar, places), **downloads_in(beside), other_members=num_others)


def _pictures_at(tar: Path, places: dict[str, Member]) -> Iterator[tuple[str, bytes]]:
    with tar.open("rb") as file:
        for image_id in sorted(places):
            yield image_id, _content_of(places[image_id], file)


def _content_of(member: Member, file: BinaryIO) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def samples_in(file: BinaryIO, tar: Path, begins: range) -> tuple[dict[tuple[str, int], Sample], int]:
    """The samples whose first member begins in `begins`, and how many members of other kinds do.

    A sample is all members of one name, wherever they stand; what a name has for a second time is a second sample.
    """
    samples: dict[tuple[str, int], Sample | None] = {}
    times: Counter[tuple[str, str]] = Counter()
    num_others = 0
    for member in members_of(file, tar):
        key, kind = key_of(member.name)
        if member.kind == "folder" or (member.kind == "file" and not kind):
            num_others += member.kind == "file" and member.start in begins
            continue
        turn = times[key, kind]
        times[key, kind] += 1
        sample = samples.setdefault((key, turn), Sample(member.number) if member.start in begins else None)
        if sample and (fault := fault_of(member, kind) or _fault_in(sample, member, kind, file)):
            sample.fault = sample.fault or fault
    return {key: sample for key, sample in samples.items() if sample}, num_others


def key_of(name: str) -> tuple[str, str]:
    """The name of the sample that a member belongs to, and what it is of it; that is empty for other files."""
    key, suffix = posixpath.splitext(name)
    kind = "" if posixpath.basename(name).startswith(".") else KINDS.get(suffix.lower(), "")
    key = key if kind else name
    return key if _leaves(key) else posixpath.normpath(key), kind


def _leaves(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


def fault_of(member: Member, kind: str) -> str | None:
    """Why the member is not read, or None."""
    if shown(member.name) != member.name:
        return "name_not_utf8_or_too_long"
    if _leaves(member.name):
        return "path_leaves_tar"
    if member.kind != "file":
        return f"member_is_{member.kind}"
    if member.size > (LONGEST_PICTURE if kind == "picture" else LONGEST_TEXT):
        return f"{kind}_too_large"
    return "picture_empty" if kind == "picture" and not member.size else None


def _fault_in(sample: Sample, member: Member, kind: str, file: BinaryIO) -> str | None:
    """Puts what the member holds into the sample; why that can not be, or None."""
    if kind == "picture":
        sample.picture = member
        return None
    try:
        text = _content_of(member, file).decode("utf-8-sig")
    except UnicodeDecodeError:
        return f"{kind}_not_utf8"
    if kind == "txt":
        sample.text = text.strip()
        return None
    told = told_by(text)
    if isinstance(told, str):
        return told
    sample.told = told
    return None


def told_by(text: str) -> dict[str, str] | str:
    """What a sample's JSON says under the names that are known, or why it is no such JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return "not_json"
    if not isinstance(found, dict):
        return "json_is_no_object"
    told = {name: found[name] for name in TOLD if found.get(name) is not None}
    for name, value in told.items():
        if not isinstance(value, str):
            return f"{name}_is_no_text"
        if any("\ud800" <= character <= "\udfff" for character in value):
            return f"{name}_has_lone_surrogates"
    return {name: value.strip() for name, value in told.items() if value.strip()}

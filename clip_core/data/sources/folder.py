"""A folder of pictures with a `.txt` beside each: a line is a caption."""

import os
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from clip_core.config.sources import FolderSource
from clip_core.data.sources import Harvest, Part
from clip_core.data.sources.folders import (
    LONGEST_PICTURE,
    LONGEST_TEXT,
    PART_BYTES,
    PART_PICTURES,
    PICTURES,
    files_in,
    shown,
)
from clip_core.data.sources.rows import Origin, Record, Rows
from clip_core.data.sources.split import SPLIT_NAMES
from clip_core.errors import UserError

FOLDER_BITS, ALL_BITS = 12, 44  # of a file's code: those of its first sub-folder, then those of its name


class File(NamedTuple):
    code: int
    path: str  # in the folder
    size: int
    fault: str | None


def parts_of(data: FolderSource) -> list[Part]:
    """Parts of files with like codes: one more file or sub-folder is one more in its part, and moves no other."""
    folder = Path(data.path)
    files = list(_files_of(folder))
    if not any(file.path.lower().endswith(PICTURES) for file in files):
        raise UserError(f"{folder}: no picture in it ({', '.join(PICTURES)}). `data.path` names the folder.")
    own = " ".join(name for name in SPLIT_NAMES if (folder / name).is_dir())
    parts = []
    for bits, some in _divided(sorted(files), ""):
        refused = [word for file in some if file.fault for word in (file.fault, file.path)]
        reads = tuple(folder / file.path for file in some if not file.fault)
        parts.append(Part(f"folder-{bits}".strip("-"), reads, (own, *refused)))
    return parts


def _files_of(folder: Path) -> Iterator[File]:
    """The pictures and texts, and what looks like one, or like a folder, and is refused."""
    root = os.path.realpath(folder)
    for entry in files_in(folder):
        is_text, is_picture = (entry.name.lower().endswith(ending) for ending in (".txt", PICTURES))
        if is_text or is_picture or os.path.isdir(entry):  # noqa: PTH112 - never raises
            path = os.path.relpath(entry.path, folder)
            fault = _fault_of(entry, root) or _fault_of_size(entry.stat().st_size, is_text)
            size = 0 if fault else entry.stat().st_size
            if shown(path) != path:
                fault = "name_not_utf8_or_too_long"
            yield File(_code_of(path), shown(path), size, fault)


def _fault_of(entry: os.DirEntry, root: str) -> str | None:
    """Why the file is not read, or None."""
    if os.path.isdir(entry):  # noqa: PTH112
        return "folder_is_link"
    if not os.path.isfile(entry):  # noqa: PTH113 - Path's raises for a link to itself
        return "no_plain_file"
    if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(root):
        return "outside_folder"
    return None if os.access(entry, os.R_OK, effective_ids=True) else "unreadable"


def _fault_of_size(size: int, is_text: bool) -> str | None:
    if is_text:
        return "text_too_large" if size > LONGEST_TEXT else None
    if size > LONGEST_PICTURE:
        return "picture_too_large"
    return None if size else "picture_empty"


def _code_of(path: str) -> int:
    """A number that the first sub-folder decides first, and then the path without its ending."""
    top, stem = (path.partition("/")[0] if "/" in path else ""), os.path.splitext(path)[0]  # noqa: PTH122
    first, then = (int.from_bytes(sha256(os.fsencode(text)).digest()[:4]) for text in (top, stem))
    return first >> (32 - FOLDER_BITS) << (ALL_BITS - FOLDER_BITS) | then


def _divided(files: list[File], bits: str) -> Iterator[tuple[str, list[File]]]:
    """The files, sorted, in groups that are small enough; each with the bits that its codes begin with."""
    num_pictures = sum(file.path.lower().endswith(PICTURES) for file in files)
    is_small = num_pictures <= PART_PICTURES and sum(file.size for file in files) <= PART_BYTES
    if is_small or len(bits) == ALL_BITS:
        yield bits, files
        return
    halves: tuple[list[File], list[File]] = [], []
    for file in files:
        halves[file.code >> (ALL_BITS - 1 - len(bits)) & 1].append(file)
    for bit, half in zip("01", halves, strict=True):
        if half:
            yield from _divided(half, bits + bit)


def harvest(data: FolderSource, part: Part) -> Harvest:
    """Each picture with each line of its text, by itself a pair or a rejected row."""
    folder = Path(data.path)
    own, *refused = map(str, part.at)
    rows = Rows(data, tuple(own.split()))
    for fault, path in zip(refused[::2], refused[1::2], strict=True):
        rows.reject(fault, Origin(str(folder / path), 0), path)
    pictures, captions = defaultdict(list), {}
    for path in sorted(path.relative_to(folder).as_posix() for path in part.reads):
        stem, ending = os.path.splitext(path)  # noqa: PTH122
        if ending.lower() in PICTURES:
            pictures[stem].append(path)
        else:
            captions[path] = tuple(_captions_in(folder / path, path, rows))
    of_stem = {os.path.splitext(path)[0]: found for path, found in captions.items()}  # noqa: PTH122
    records = [(path, True, of_stem.get(stem, ()), 0) for stem, paths in pictures.items() for path in paths]
    records += [(path, False, found, 1) for path, found in captions.items() if path[: -len(".txt")] not in pictures]
    kept = []
    for path, has_picture, found, line in records:
        split = rows.split_at(path.partition("/")[0])
        record = Record(path, has_picture, found, Origin(str(folder / path), line), split)
        if rows.add(record) and has_picture:
            kept.append(path)
    return rows.harvest((path, (folder / path).read_bytes()) for path in sorted(kept))


def _captions_in(file: Path, path: str, rows: Rows) -> Iterator[str]:
    """The lines that are not blank; those that are no text are rejected."""
    for number, line in enumerate(file.read_bytes().removeprefix(BOM_UTF8).splitlines(), 1):
        try:
            if text := line.decode("utf-8").strip():
                yield text
        except UnicodeDecodeError:
            rows.reject("line_not_utf8", Origin(str(file), number), path)

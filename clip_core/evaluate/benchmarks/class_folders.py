"""Pictures in class folders, as torchvision's `ImageFolder` orders them, which the reference reads them with.

`<folder>/test/<class>/...`, and `<folder>/label_cn.txt` with a Chinese name a line. The classes are the folders in the
order of their names: `000`, `001`, ... in ELEVATER's archive. Without the file, the folders' names are the classes'.
"""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from clip_core.config.section import hash_of
from clip_core.data.characters import characters_of
from clip_core.errors import UserError
from clip_core.inference.features import Shelf
from clip_core.kept import hashes_of

NAMES, INDEX = "label_cn.txt", "index.json"
BESIDE = {NAMES, "label.txt", INDEX}  # of the reference's archive
PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
SHELF = 4096  # pictures whose features are kept together


def read_class_folders(
    folder: Path, inner: str | None, several: bool
) -> tuple[list[str], np.ndarray, list[Shelf], list[int] | None]:
    """The class names, the labels (pictures,), the pictures, and the order in `index.json`, if it is there.

    With `several`, a picture that lies in several class folders is one of several classes, and labels are bool
    (pictures, classes).
    """
    root = folder / inner if inner else folder
    folders = _class_folders(root)
    names = _names(folder, root, folders)
    files = [file for name in folders for file in _files_in(root / name)]
    labels = np.array([folders.index(file.relative_to(root).parts[0]) for file in files])
    sums = hashes_of(files)
    if several:
        places: dict[str, int] = {}
        of_picture = np.array([places.setdefault(sha256, len(places)) for sha256 in sums])
        is_of = np.zeros((len(places), len(names)), dtype=bool)
        is_of[of_picture, labels] = True
        firsts = [sums.index(sha256) for sha256 in places]
        files, sums, labels = [files[i] for i in firsts], list(places), is_of
    shelves = []
    for start in range(0, len(files), SHELF):
        some = files[start : start + SHELF]
        ids = [file.relative_to(root).as_posix() for file in some]
        shelves.append(Shelf(hash_of(sums[start : start + SHELF]), ids, partial(map, Path.read_bytes, some)))
    return names, labels, shelves, _index(folder / INDEX)


def _index(file: Path) -> list[int] | None:
    """The places of the pictures in the challenge's own order."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: can not be read: {error}") from None
    if not isinstance(found, list) or not all(type(place) is int for place in found):
        raise UserError(f"{file}: a list of numbers is expected: the place of each picture in the challenge's order")
    return found


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: one folder a class is expected in it")
    entries = sorted((entry for entry in os.scandir(root) if not entry.name.startswith(".")), key=lambda e: e.name)
    if extra := [entry.path for entry in entries if not entry.is_dir() and entry.name not in BESIDE]:
        raise UserError(f"{extra[0]}: a file among the class folders ({len(extra):,} in all): put it elsewhere")
    folders = [entry.name for entry in entries if entry.is_dir()]
    if not folders:
        raise UserError(f"{root}: no class folder in it")
    if all(name.isdecimal() for name in folders) and [int(name) for name in folders] != list(range(len(folders))):
        wrong = next(name for i, name in enumerate(folders) if int(name) != i)
        raise UserError(
            f"{root / wrong}: class folders that are numbers must be 0 to {len(folders) - 1} in the order of their "
            f"names: fill up with zeros ({0:03d}, {1:03d}, ...), and add the one that is missing or remove this one"
        )
    return folders


def _names(folder: Path, root: Path, folders: list[str]) -> list[str]:
    """The classes' names in the order of the folders."""
    file = folder / NAMES
    if not file.exists():
        if characters_of(folders).chinese.all():
            return folders
        raise UserError(f"{file}: no such file: a Chinese name a line is expected, for each class folder of {root}")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: can not be read as UTF-8 text: {error}") from None
    if "" in lines:
        raise UserError(f"{file}, line {lines.index('') + 1}: a class without a name: write one there")
    if len(lines) != len(folders):
        raise UserError(
            f"{file}: {len(lines):,} names, but {root} has {len(folders):,} class folders ({folders[0]} to "
            f"{folders[-1]}): one or the other is not whole"
        )
    if set(lines) & set(folders):  # then folders are called as classes are
        if unknown := sorted(set(folders) ^ set(lines)):
            raise UserError(f"{root / unknown[0]}: in {file} or as a folder, but not both; {len(unknown):,} like this")
        return folders
    return lines


def _files_in(folder: Path) -> Iterator[Path]:
    """The pictures in one class folder and below, links followed, in the order of folders, then names."""
    num_files = 0
    for at, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(name for name in names if not name.startswith(".")):
            if not name.lower().endswith(PICTURES):
                raise UserError(f"{Path(at, name)}: no picture ({', '.join(PICTURES)}): put it elsewhere")
            num_files += 1
            yield Path(at, name)
    if not num_files:
        raise UserError(f"{folder}: no picture of this class: a benchmark has some of each")

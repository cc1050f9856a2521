"""What sources of many files share: finding the files, naming shards after them, reading the small ones."""

import json
import os
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from clip_core.errors import UserError

PART_BYTES, PART_PICTURES = 2**27, 50_000  # about as much as a part has
LONGEST_PICTURE, LONGEST_TEXT = 2**27, 2**20  # bytes
LONGEST_JSON = 2**24  # bytes of a file about other files
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def files_in(folder: Path) -> Iterator[os.DirEntry]:
    """The files in `folder` and below, and the links to folders, which are not followed; hidden ones are left out."""
    folders = [folder]
    while folders:
        at = folders.pop()
        try:
            with os.scandir(at) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{at}: can not be read: {error.strerror}. `data.path` names the folder.") from None
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            else:
                yield entry


def shard_name(text: str) -> str:
    """`text` in the characters that the name of a part may have; no two texts share a name."""
    plain = re.sub(r"[^a-z0-9.-]+", "-", text.lower())[:60].strip("-.")
    return plain if plain == text else f"{plain}-{sha256(os.fsencode(text)).hexdigest()[:8]}".lstrip("-")


def shown(text: str) -> str:
    """The beginning of `text` as it can be written down, whatever is in it."""
    return text[:200].encode("utf-8", "backslashreplace").decode()


def read_json(file: Path) -> dict:
    """The object in a small JSON file."""
    try:
        with file.open("rb") as opened:
            content = opened.read(LONGEST_JSON + 1)
    except OSError as error:
        raise UserError(f"{file}: can not be read: {error.strerror}. `data.path` names its folder.") from None
    try:
        found = json.loads(content) if len(content) <= LONGEST_JSON else f"more than {LONGEST_JSON:,} bytes"
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON: {error}. Write it again, or remove it if nothing needs it.") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: an object is wanted, not {shown(repr(found))}")
    return found

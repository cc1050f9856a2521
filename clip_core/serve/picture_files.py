"""Which files of a folder are pictures, by their names alone."""

import os
from pathlib import Path

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
KINDS = ", ".join(f"*{suffix}" for suffix in sorted(SUFFIXES))


def is_picture(file: Path) -> bool:
    """Whether it is a file whose name is that of a picture, and not hidden, or leads to nothing that can be seen."""
    can_be_read = os.path.isfile(file) or not os.path.exists(file)  # noqa: PTH110, PTH113 - unlike Path's, never raise
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and can_be_read


def in_utf8(file: Path) -> str:
    """Its name as it can be printed, whatever its bytes are."""
    return os.fsencode(file).decode("utf-8", "replace")

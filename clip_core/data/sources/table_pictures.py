"""The pictures that a part of a table names: files in the folder, URLs that were fetched, or bytes in the table."""

import os
import re
import tempfile
from collections.abc import Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

from clip_core.config.sources import TableSource
from clip_core.data.sources.fetch import asked_again, fetch, fetched_at
from clip_core.data.sources.table_records import Cell
from clip_core.errors import UserError

URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
LARGEST = 2**27  # bytes: a larger file is no picture
WORK = Path(".work")


class Picture(NamedTuple):
    """Where a picture lies, and what it is called where no column `image_id` says it."""

    image_id: str
    file: Path | None  # null: in the spill
    offset: int = 0
    length: int = -1  # all of the file
    url: str | None = None


class Pictures:
    """All pictures of a part. Bytes from a table lie on the disk, not in memory, until they are asked for by id."""

    def __init__(self, data: TableSource) -> None:
        self.folder, self.settings = Path(data.path), data.fetch
        self.inside = os.path.realpath(self.folder)
        self.spilled: dict[str, Picture] = {}
        self.files: dict[str, str | None] = {}  # by path in the folder: why a file can not be read, or None
        self.not_fetched: dict[str, str] = {}  # by URL: why

    def picture_of(self, image: Cell) -> Picture | None:
        """The picture that the cell holds or names; None where it is blank."""
        if isinstance(image, bytes):
            return self._spilled(image) if image else None
        image = (image or "").strip()
        if not image:
            return None
        if URL.match(image):
            return Picture(f"url-{sha256(image.encode()).hexdigest()[:32]}", fetched_at(image), url=image)
        path = os.path.normpath(image)  # its shortest form: one picture has one id
        return Picture(path, self.folder / path)

    def _spilled(self, image: bytes) -> Picture:
        image_id = f"sha256-{sha256(image).hexdigest()[:32]}"
        if image_id not in self.spilled:
            self.spilled[image_id] = Picture(image_id, None, self.spill.seek(0, os.SEEK_END), len(image))
            try:
                self.spill.write(image)
                self.spill.flush()
            except OSError as error:
                raise UserError(f"{WORK}: no room for the pictures of a table: {error.strerror}; make some") from None
        return self.spilled[image_id]

    @cached_property
    def spill(self) -> BinaryIO:
        WORK.mkdir(exist_ok=True)
        return tempfile.TemporaryFile(dir=WORK)

    def fetch(self, urls: list[str]) -> dict[str, int]:
        """Fetches what is not there yet; counts of what came of it."""
        self.not_fetched, counts = fetch(urls, self.settings)
        return counts

    def fault_of(self, picture: Picture) -> str | None:
        """Why the picture can not be read, or None."""
        if picture.file is None:
            return None
        if picture.url:
            return self.not_fetched.get(picture.url)
        if picture.image_id not in self.files:
            self.files[picture.image_id] = self._fault_of_file(str(picture.file))
        return self.files[picture.image_id]

    def _fault_of_file(self, file: str) -> str | None:
        if "\0" in file or not os.path.isfile(file):  # noqa: PTH113 - unlike Path's, never raises
            return "image_missing"
        if not Path(os.path.realpath(file)).is_relative_to(self.inside):  # also through links
            return "image_outside_folder"
        try:
            with Path(file).open("rb") as stream:
                stream.read(1)
                return "image_too_large" if os.fstat(stream.fileno()).st_size > LARGEST else None
        except OSError:
            return "image_unreadable"

    def looked_for(self) -> list[Path]:
        """The files that decide what comes out: pictures, and those that another run may find when it asks again."""
        files = [self.folder / path for path in self.files if "\0" not in path]
        return files + ([asked_again()] if self.not_fetched else [])

    def read(self, picture: Picture) -> bytes:
        """The picture's encoded bytes."""
        if picture.file is None:
            self.spill.seek(picture.offset)
            return self.spill.read(picture.length)
        try:
            return picture.file.read_bytes()
        except OSError as error:
            raise UserError(f"{picture.file}: was there, and can no longer be read: {error.strerror}") from None

    def in_order(self, by_id: dict[str, Picture]) -> Iterator[tuple[str, bytes]]:
        """The pictures in the order of their ids, one in memory at a time."""
        return ((image_id, self.read(by_id[image_id])) for image_id in sorted(by_id))

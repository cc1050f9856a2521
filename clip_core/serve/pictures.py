"""The galleries as the gateway gives them out, by their release's id: pictures, names, probabilities, indexes."""

import asyncio
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import numpy as np
from pydantic import JsonValue
from starlette.exceptions import HTTPException

from clip_core.data.store import open_store
from clip_core.inference.calibration import Calibration, read_calibration
from clip_core.serve.index import Index, read_index, read_metadata
from clip_core.serve.release import GALLERY_NAME, RELEASE_ID

if TYPE_CHECKING:
    from clip_core.data.store import Store

INDEXES = "models/clip_search/1/galleries"  # in a release
MAX_OPEN = 8  # galleries: those of the release that serves, of the one before and of the next
MEDIA_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "image/webp",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}


class Pictures(NamedTuple):
    store: "Store"
    places: dict[str, int]  # of the picture's id
    names: dict[str, str]
    calibration: Calibration | None
    index: Index
    metadata: dict[str, np.ndarray]  # by column, of each picture in the order of the index; of objects
    address: str  # of its pictures, before their ids

    def read(self, image_id: str) -> tuple[bytes, str]:
        """The picture and its media type, for browsers."""
        return for_browsers(self.store.image_bytes(self.places[image_id]))

    def are_as(self, wanted: Mapping[str, JsonValue]) -> np.ndarray:
        """Which pictures of the index have all these values in their metadata, (n,) bool; 400 for a column unknown."""
        if unknown := sorted(wanted.keys() - self.metadata.keys()):
            columns = ", ".join(self.metadata) or "none (index.metadata of params.yaml names them)"
            raise HTTPException(400, f"filter: {', '.join(unknown)}: this gallery's metadata: {columns}")
        found = np.ones(len(self.index.image_ids), dtype=bool)
        for column, value in wanted.items():
            found &= self.metadata[column] == value
        return found

    def hits(self, image_ids: Sequence[str], scores: np.ndarray, among: int | None) -> list[dict]:
        """What is said of each picture found among so many; None: not by a text, for which calibrations are.

        Its probability is None then, and without a calibration.
        """
        probabilities: Sequence[float | None] = [None] * len(image_ids)
        if self.calibration is not None and among:
            probabilities = self.calibration.probability(scores, among).round(4).tolist()
        return [
            {
                "image_id": image_id,
                "score": round(float(score), 4),
                "probability": probability,
                "name": self.names.get(image_id, ""),
                "image": f"{self.address}/{quote(image_id, safe='')}",
            }
            for image_id, score, probability in zip(image_ids, scores, probabilities, strict=True)
        ]


class Galleries:
    """The galleries of the releases in a folder; the last used of them stay open."""

    def __init__(self, releases: Path) -> None:
        self.releases = releases
        self.open: dict[Path, asyncio.Task[Pictures]] = {}  # the last used one is the last

    async def names(self, release: str) -> list[str]:
        """The release's galleries, sorted."""
        folder = self.releases / release / "galleries"
        found = await asyncio.to_thread(lambda: sorted(entry.name for entry in folder.iterdir()))
        return [name for name in found if GALLERY_NAME.fullmatch(name)]

    async def first_unless(self, gallery: str | None, release: str) -> str:
        """The gallery that is named, or else the release's first."""
        return gallery or (await self.names(release))[0]

    async def pictures(self, release: str, gallery: str) -> Pictures:
        """Those of the gallery; 404 when there is none, or no more."""
        folder = self.releases / release / "galleries" / gallery
        if not (RELEASE_ID.fullmatch(release) and GALLERY_NAME.fullmatch(gallery) and folder.is_dir()):
            raise HTTPException(404, f"no release {release!r} with a gallery {gallery!r} here")
        task = self.open.pop(folder, None)
        if task is None or (task.done() and task.exception()):
            self._close_all_but(MAX_OPEN - 1)
            task = asyncio.create_task(asyncio.to_thread(_open_pictures, folder))
        self.open[folder] = task
        return await asyncio.shield(task)  # others wait for it, too

    def _close_all_but(self, num_kept: int) -> None:
        """Who reads a picture still has its store, which closes with its last user."""
        there = [folder for folder in self.open if folder.is_dir()]
        self.open = {folder: self.open[folder] for folder in there[-num_kept:]}


def for_browsers(data: bytes) -> tuple[bytes, str]:
    """The encoded picture with its media type; as PNG where few browsers show it, as TIFF."""
    for start, kind in MEDIA_TYPES.items():
        if data.startswith(start):
            return data, kind
    from clip_core.image import read_image

    png = io.BytesIO()
    read_image(data).save(png, "PNG")
    return png.getvalue(), "image/png"


def _open_pictures(folder: Path) -> Pictures:
    store, release = open_store(folder), folder.parents[1]
    index = read_index(release / INDEXES / folder.name)
    can_be_found = set(index.image_ids)  # the store may have files with others, which were removed
    metadata = read_metadata(release / INDEXES / folder.name)
    for file in store.files:
        store.image_bytes(file["first"])  # opens it, so that it can be read also when the folder is removed
    return Pictures(
        store,
        {image_id: place for place, image_id in enumerate(store.image_ids) if image_id in can_be_found},
        _names(store),
        read_calibration(release, None),
        index,
        {column: np.array(values, dtype=object) for column, values in metadata.items()},
        f"/images/{release.name}/{folder.name}",
    )


def _names(store: "Store") -> dict[str, str]:
    """The first Chinese name (or caption) of every picture."""
    rows = store.pairs.query("language == 'zh' and caption_kind in ('name', 'caption') and image_id.notna()")
    rows = rows.drop_duplicates("image_id")
    return dict(zip(rows.image_id, rows.caption, strict=True))

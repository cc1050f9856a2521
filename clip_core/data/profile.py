"""The facts about pictures that validation and curation need: a full decode and a fingerprint of every one."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from clip_core.data.jpeg_scans import MAX_SCANS, has_too_many_scans
from clip_core.errors import UserError
from clip_core.image import check_pixels, open_image, read_image

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

IN_FLIGHT = 4  # pictures in memory at a time, for each thread
THUMBNAIL_SIDE = 16
ENOUGH = 192  # pixels of the shorter side, for a fingerprint: 12 for each of the thumbnail's
FINGERPRINT = ("difference_hash", "thumbnail")
MEASURED = (
    "actual_sha256",
    "bytes",
    "picture_decodes",
    "mode",
    "actual_width",
    "actual_height",
    "side",
    "pixels",
    "aspect",
)
LARGE, LARGE_PIXELS = Lock(), 8_000_000  # decoding takes up to 28 bytes a pixel: one large picture at a time
STEP = 4  # grey levels that neighbours must differ by, so that JPEG's noise in a flat area sets no bit


def profile_images(images: Iterable[tuple[str, bytes]], max_pixels: int) -> "pd.DataFrame":
    """A row a picture: what it truly is, and its fingerprint for curation; null where it can not be decoded."""
    import pandas as pd

    rows: list[dict] = []
    spoke_at = time.monotonic()
    for facts in facts_of(images, max_pixels):
        rows.append(facts)
        if time.monotonic() - spoke_at > 3:
            print(f"validate: {len(rows)} pictures decoded", flush=True)
            spoke_at = time.monotonic()
    return pd.DataFrame(rows, columns=["image_id", *MEASURED, *FINGERPRINT])


def facts_of(images: Iterable[tuple[str, bytes]], max_pixels: int) -> Iterator[dict]:
    """The facts about each picture, in order, with its id; Pillow decodes outside Python's lock."""

    def profile(image_id: str, data: bytes) -> dict:
        return {"image_id": image_id, **profile_image(data, max_pixels)}

    workers = os.cpu_count() or 1
    waiting: deque[Future[dict]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for named in images:
            if len(waiting) == workers * IN_FLIGHT:
                yield waiting.popleft().result()
            waiting.append(pool.submit(profile, *named))
        while waiting:
            yield waiting.popleft().result()


def profile_image(data: bytes, max_pixels: int) -> dict:
    """The facts about one picture's bytes; one with more than `max_pixels` is measured, but not decoded."""
    facts: dict[str, object] = {"actual_sha256": sha256(data).hexdigest(), "bytes": len(data)}
    try:
        image = open_image(data)
        width, height = image.size
        side, longer = sorted(image.size)
        facts |= {"mode": f"{image.format} {image.mode}", "actual_width": width, "actual_height": height}
        facts |= {"side": side, "pixels": side * longer, "aspect": longer / side}
        if side * longer > max_pixels:
            return facts
        check_decodable(image, data, max_pixels)
        image.draft(
            None, (width * ENOUGH // side, height * ENOUGH // side)
        )  # a JPEG's coded bits are read all the same
        with LARGE if image.width * image.height > LARGE_PIXELS else nullcontext():
            image = read_image(image)
    except ValueError:
        return facts | {"picture_decodes": False}
    return facts | {
        "picture_decodes": True,
        "difference_hash": difference_hash(image),
        "thumbnail": thumbnail(image),
    }


def check_decodable(image: "Image.Image", data: bytes, max_pixels: int) -> None:
    """Raises UserError for what would take too much memory or time to decode."""
    check_pixels(image, max_pixels)  # a TIFF's tiles may be larger than its picture
    if has_too_many_scans(data):
        raise UserError(f"broken picture: a JPEG of more than {MAX_SCANS} scans")


def difference_hash(image: "Image.Image") -> int:
    """A 64-bit perceptual hash: where the picture, shrunk to 9 x 8 grey pixels, grows brighter to the right."""
    from PIL import Image

    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = grey[:, 1:] - grey[:, :-1] > STEP
    return int.from_bytes(np.packbits(bits).tobytes())


def thumbnail(image: "Image.Image") -> bytes:
    """The picture shrunk to 16 x 16 RGB pixels: tells a red circle from a blue one, which the hash does not."""
    from PIL import Image

    return image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes()

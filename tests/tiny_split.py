"""A packed split of plain coloured pictures, for tests of evaluation and report."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from clip_core.data.store import Store, StoreWriter, open_store


def make_split(folder: Path, rows: Sequence[tuple[str, str, bool, str | None]], source: str = "made") -> Store:
    """The split of (image_id, Chinese name, seen, group) rows, a pair each."""
    encoded = {image_id: plain_picture(i) for i, image_id in enumerate(sorted({row[0] for row in rows}))}
    pairs = pd.DataFrame(rows, columns=["image_id", "caption", "seen", "group"])
    pairs = pairs.assign(
        pair_id=[f"{image_id}/{i}" for i, image_id in enumerate(pairs.image_id)],
        text_id="zh-name-" + pairs.caption,
        language="zh",
        caption_kind="name",
        concept_id=pairs.caption,
        family=pairs.caption,
        split="test",
        source=source,
        licence="CC0-1.0",
        image_sha256=[hashlib.sha256(encoded[image_id]).hexdigest() for image_id in pairs.image_id],
        width=8,
        height=8,
        num_bytes=[len(encoded[image_id]) for image_id in pairs.image_id],
    )
    writer = StoreWriter(folder, shard_bytes=2**20)
    for image_id, image in encoded.items():
        writer.add(image_id, image)
    writer.finish(pairs)
    return open_store(folder)


def plain_picture(number: int) -> bytes:
    """A PNG of one colour, another for each number."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 37 % 256, number * 91 % 256, number % 256)).save(buffer, "PNG")
    return buffer.getvalue()

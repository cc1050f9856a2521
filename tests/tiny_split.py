"""A packed split of plain coloured pictures, for tests of evaluation and report."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from clip_core.data.store import Store, StoreWriter, open_store

Row = tuple[str | None, str | None, bool, str | None]


def make_split(folder: Path, rows: Sequence[Row], source: str = "made", words: str = "") -> Store:
    """The split of (image_id, Chinese name, seen, group) rows, a pair each, or a picture or a text alone.

    A name that is a character of `words` is none, but an unseen word.
    """
    encoded = {image_id: plain_picture(i) for i, image_id in enumerate(sorted({row[0] for row in rows if row[0]}))}
    pairs = pd.DataFrame(rows, columns=["image_id", "caption", "seen", "group"])
    has_text, sums = pairs.caption.notna(), {name: hashlib.sha256(image).hexdigest() for name, image in encoded.items()}
    pairs = pairs.assign(
        pair_id=[f"{image_id}/{i}" for i, image_id in enumerate(pairs.image_id)],
        text_id="zh-name-" + pairs.caption,
        language=has_text.map({True: "zh", False: None}),
        caption_kind=has_text.map({True: "name", False: None}).mask(pairs.caption.isin([*words]), "unseen_word"),
        concept_id=pairs.caption,
        family=pairs.caption,
        split="test",
        source=source,
        licence="CC0-1.0",
        image_sha256=pairs.image_id.map(sums),
        width=8,
        height=8,
        num_bytes=[len(encoded.get(image_id, b"")) for image_id in pairs.image_id],
    )
    writer = StoreWriter(folder, file_bytes=2**20)
    for image_id, image in encoded.items():
        writer.add(image_id, image)
    writer.finish(pairs)
    return open_store(folder)


def plain_picture(number: int) -> bytes:
    """A PNG of one colour, another for each number."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 37 % 256, number * 91 % 256, number % 256)).save(buffer, "PNG")
    return buffer.getvalue()

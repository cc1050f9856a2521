"""A packed split of pictures with sentences, in several shards: for tests of the loader."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from clip_core.data.pairs import COLUMNS
from clip_core.data.store import Store, StoreWriter, join_stores, open_store

SIDE = 96


def jpeg(number: int) -> bytes:
    """A picture of coloured blocks, another for each number."""
    blocks = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(buffer, "JPEG")
    return buffer.getvalue()


def row(image_id: str, number: int, caption: str, kind: str = "caption", **more: object) -> dict:
    """A pair of train."""
    values = {"pair_id": f"{image_id}/{number}", "image_id": image_id, "caption": caption, "caption_kind": kind}
    fixed = {"language": "zh", "split": "train", "source": "test", "licence": "CC0-1.0", "text_id": f"zh-{caption}"}
    sizes = {"width": SIDE, "height": SIDE, "num_bytes": 1}
    return dict.fromkeys(COLUMNS) | {"seen": True, "near_duplicate_group": image_id} | fixed | sizes | values | more


def sentence_store(folder: Path, shards: Sequence[Sequence[dict]], broken: Sequence[str] = ()) -> Store:
    """The store of these rows; the pictures named in `broken` are cut off."""
    folder.mkdir()
    of_shard, number = {}, 0
    for name, rows in enumerate(shards):
        writer = StoreWriter(folder / f"{name:03}", 2**20)
        for image_id in sorted({row["image_id"] for row in rows}):
            number += 1
            writer.add(image_id, jpeg(number)[: 400 if image_id in broken else None])
        sums = dict(zip(writer.image_ids, writer.sums, strict=True))
        pairs = pd.DataFrame(rows)
        writer.finish(pairs.assign(image_sha256=pairs["image_id"].map(sums)))
        of_shard[f"{name:03}"] = folder / f"{name:03}"
    join_stores(of_shard, folder / "store")
    return open_store(folder / "store")


def many(num_shards: int, num_images: int) -> list[list[dict]]:
    """Shards of so many pictures with one, two or three sentences each."""
    return [
        [
            row(f"{shard:02}-{image:03}", number, f"第{shard}组第{image}张图的第{number}句")
            for image in range(num_images)
            for number in range(image % 3 + 1)
        ]
        for shard in range(num_shards)
    ]

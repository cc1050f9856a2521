"""A small, clean `data/raw` that tests plant a fault into."""

import io
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from clip_core.data.pairs import write_counts, write_images, write_pairs

CAPTIONS = (
    "一只猫",
    "红色的苹果",
    "蓝天上的白云",
    "下雨天的伞",
    "火车站",
    "生日蛋糕",
    "足球比赛",
    "老虎",
    "月亮",
    "雪山",
    "书",
    "船",
)
SPLITS = ("train",) * 6 + ("valid",) * 3 + ("test",) * 3


def drawing(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """A picture of coloured blocks, unlike that of any other seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """The picture's bytes in a file format."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def pair_row(image_id: str, image: bytes, caption: str, split: str, **changed: object) -> dict:
    """A row of the pair table for the picture, with some values `changed`."""
    return {
        "pair_id": f"{image_id}/{caption}",
        "image_id": image_id,
        "text_id": f"text-{caption}",
        "caption": caption,
        "language": "zh",
        "caption_kind": "caption",
        "concept_id": None,
        "family": None,
        "group": None,
        "split": split,
        "source": "test",
        "licence": "CC0-1.0",
        "image_sha256": sha256(image).hexdigest(),
        "width": 32,
        "height": 32,
        "num_bytes": len(image),
    } | changed


def small_raw() -> tuple[list[dict], dict[str, bytes]]:
    """Twelve clean pairs of twelve pictures, and the pictures by id."""
    images = {f"picture-{i:02d}": encoded(drawing(i)) for i in range(len(CAPTIONS))}
    rows = [
        pair_row(image_id, image, caption, split)
        for (image_id, image), caption, split in zip(images.items(), CAPTIONS, SPLITS, strict=True)
    ]
    return rows, images


def write_raw(rows: list[dict], images: dict[str, bytes], folder: Path) -> Path:
    """Writes rows and pictures as the stage `ingest` does."""
    folder.mkdir(parents=True)
    write_images(sorted(images.items()), folder / "images-small.parquet")
    write_pairs(pd.DataFrame(rows), folder / "pairs-small.parquet")
    write_counts(folder, len(rows), len(rows), [])
    return folder

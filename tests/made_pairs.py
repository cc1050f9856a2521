"""Pairs by the million, made here: tables of tiny pictures, and MUGE's shape with photo-like ones."""

import base64
import io
import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

ROWS = 50_000  # of a table
CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
# MUGE's counts, as its authors publish them: pictures, pairs, and texts of valid.
TRAIN, VALID = (129_380, 250_314), (29_806, 30_588)
NUM_QUERIES = 5_008


def write_tables(folder: Path, first: int, num: int) -> None:
    """The tables `first`, `first` + 1, ... of ROWS pairs each, every picture another."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_write_table, folder), range(first, first + num)))


def _write_table(folder: Path, number: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(number)
    pictures = [_encoded(Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))) for _ in range(ROWS)]
    image_ids = [f"{number:04d}-{row:05d}" for row in range(ROWS)]
    table = {"image_id": image_ids, "image": pictures, "caption": [_caption(draw, 12) for _ in range(ROWS)]}
    pq.write_table(pa.table(table), folder / f"part-{number:04d}.parquet", row_group_size=5_000)


def write_muge(folder: Path, share: float = 1.0) -> None:
    """`train` and `valid` in the reference's format: photo-like JPEGs of about 20 kB, captions of 7 characters."""
    for name, (num_pictures, num_pairs), first in (("train", TRAIN, 0), ("valid", VALID, TRAIN[0])):
        pictures, pairs = int(num_pictures * share), int(num_pairs * share)
        texts = pairs if name == "train" else int(NUM_QUERIES * share)
        write_split(folder, name, first, pictures, pairs, texts)


def write_split(folder: Path, name: str, first: int, num_pictures: int, num_pairs: int, num_texts: int) -> None:
    """One of them, whose ids begin with `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_pictures(folder / f"{name}_imgs.tsv", first, num_pictures)
    _write_texts(folder / f"{name}_texts.jsonl", first, num_pictures, num_pairs, num_texts)


def _write_pictures(file: Path, first: int, num: int) -> None:
    with file.open("wb") as tsv, ProcessPoolExecutor() as pool:
        for line in pool.map(_line, range(first, first + num), chunksize=200):
            tsv.write(line)


def _line(number: int) -> bytes:
    return b"%d\t%s\n" % (number, base64.b64encode(_photo(number)))


def _write_texts(file: Path, first: int, num_pictures: int, num_pairs: int, num_texts: int) -> None:
    draw = np.random.default_rng(first)
    of_pairs = np.concatenate([np.arange(num_pictures), draw.integers(0, num_pictures, num_pairs - num_pictures)])
    with file.open("w", encoding="utf-8") as jsonl:
        for number, of_text in enumerate(np.array_split(draw.permutation(of_pairs), num_texts)):
            image_ids = [first + int(picture) for picture in np.unique(of_text)]
            row = {"text_id": first + number, "text": _caption(draw, 7), "image_ids": image_ids}
            jsonl.write(json.dumps(row, ensure_ascii=False) + "\n")


def _photo(number: int) -> bytes:
    draw = np.random.default_rng((7, number))
    smooth = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(
        (256, 256), Image.Resampling.BICUBIC
    )
    grain = np.roll(_grain(), tuple(draw.integers(0, 256, 2)), (0, 1))
    return _encoded(Image.fromarray((np.asarray(smooth).astype(np.int16) + grain).clip(0, 255).astype(np.uint8)))


@cache
def _grain() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=9, size=(256, 256, 1)).astype(np.int16)


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _caption(draw: np.random.Generator, length: int) -> str:
    return "".join(CHARACTERS[code] for code in draw.integers(0, len(CHARACTERS), length))

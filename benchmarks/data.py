"""The data of the benchmarks, made here and the same everywhere: photo-like pictures and short Chinese captions."""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

LENGTHS = (7, 16)  # characters of a caption; mean 11.5, as in MUGE and the captions of peers.md


@cache
def photos(num: int) -> list[bytes]:
    """640 x 480 JPEGs of quality 85 and about 75 KB each: smooth shapes and grain, as cameras make."""
    draw = np.random.default_rng(0)
    return [_photo(draw) for _ in range(num)]


def _photo(draw: np.random.Generator) -> bytes:
    picture = np.zeros((480, 640, 3), np.float32)
    for cells, weight in ((6, 90), (24, 45), (80, 25)):
        noise = draw.normal(size=(cells * 3 // 4, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(noise[:, :, c]).resize((640, 480), Image.Resampling.BICUBIC) for c in range(3)]
        picture += weight * np.stack([np.asarray(layer) for layer in layers], axis=2)
    picture += draw.normal(scale=6, size=(480, 640, 1))
    buffer = io.BytesIO()
    Image.fromarray((picture + 128).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def captions(tokenizer: Path, num: int) -> list[str]:
    """Captions of Chinese characters that the vocabulary in the file `tokenizer` knows."""
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    characters = sorted(token for token in vocabulary if len(token) == 1 and "\u4e00" <= token <= "\u9fff")
    draw = np.random.default_rng(0)
    return ["".join(draw.choice(characters, draw.integers(*LENGTHS, endpoint=True))) for _ in range(num)]

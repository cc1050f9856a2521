"""Pictures of every kind that people have, as encoded bytes: modes, bit depths, transparency, EXIF, shapes."""

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image


@cache
def _colours(width: int = 60, height: int = 45, channels: int = 3) -> np.ndarray:
    """Smooth colours with noise: what a photo is to a resizer."""
    draw = np.random.default_rng(width * height + channels)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin((3 + c) * x * 6 + c) * np.cos((2 + c) * y * 6) for c in range(channels)]
    noisy = 128 + 90 * np.stack(waves, axis=-1) + draw.normal(0, 20, (height, width, channels))
    return noisy.clip(0, 255).astype(np.uint8)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _rgb(width: int = 60, height: int = 45) -> Image.Image:
    return Image.fromarray(_colours(width, height))


def _rgba() -> Image.Image:
    return Image.fromarray(_colours(channels=4))


def _transparent_colour() -> bytes:
    image = _rgb().quantize(8).convert("RGB")
    return _saved(image, "PNG", transparency=image.getpixel((0, 0)))


def _palette(**options: Any) -> bytes:
    return _saved(_rgb().quantize(32), "PNG", **options)


def _turned(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _saved(_rgb(), kind, exif=exif)


def _sixteen_bits(kind: str = "<u2") -> Image.Image:
    return Image.fromarray((_colours(channels=1)[..., 0].astype(np.uint16) << 8).astype(kind))


ODD: dict[str, Callable[[], bytes]] = {
    "RGB, PNG": lambda: _saved(_rgb(), "PNG"),
    "RGB, JPEG": lambda: _saved(_rgb(), "JPEG", quality=85),
    "RGB, progressive JPEG": lambda: _saved(_rgb(), "JPEG", progressive=True),
    "RGB, WEBP": lambda: _saved(_rgb(), "WEBP"),
    "RGB with a transparent colour": lambda: _transparent_colour(),
    "L, PNG": lambda: _saved(_rgb().convert("L"), "PNG"),
    "L, JPEG": lambda: _saved(_rgb().convert("L"), "JPEG"),
    "L with a transparent grey": lambda: _saved(_rgb().convert("L"), "PNG", transparency=130),
    "LA": lambda: _saved(_rgba().convert("LA"), "PNG"),
    "P": lambda: _palette(),
    "P with a transparent colour": lambda: _palette(transparency=3),
    "P with transparencies": lambda: _palette(transparency=bytes(range(0, 256, 8))),
    "RGBA, PNG": lambda: _saved(_rgba(), "PNG"),
    "RGBA, WEBP": lambda: _saved(_rgba(), "WEBP", lossless=True),
    "1": lambda: _saved(_rgb().convert("1"), "PNG"),
    "CMYK": lambda: _saved(_rgb().convert("CMYK"), "JPEG"),
    "I;16": lambda: _saved(_sixteen_bits(), "PNG"),
    "I;16, TIFF": lambda: _saved(_sixteen_bits(">u2"), "TIFF"),
    "I, TIFF": lambda: _saved(_sixteen_bits("<i4"), "TIFF"),
    "P, GIF": lambda: _saved(_rgb(), "GIF"),
    "P with a transparent colour, GIF": lambda: _saved(_rgb().quantize(32), "GIF", transparency=3),
    "P, animated GIF": lambda: _saved(_rgb(), "GIF", save_all=True, append_images=[_rgb(45, 60)]),
    "RGB, BMP": lambda: _saved(_rgb(), "BMP"),
    "P, BMP": lambda: _saved(_rgb().quantize(32), "BMP"),
    "RGB, TIFF": lambda: _saved(_rgb(), "TIFF", compression="tiff_lzw"),
    "RGBA, TIFF": lambda: _saved(_rgba(), "TIFF"),
    "RGB, TIFF of two pages": lambda: _saved(_rgb(), "TIFF", save_all=True, append_images=[_rgb(45, 60)]),
    "turned, TIFF": lambda: _turned(6, "TIFF"),  # upright for everybody: Pillow turns it while it decodes
    "EXIF 3, JPEG": lambda: _turned(3, "JPEG"),
    "EXIF 6, JPEG": lambda: _turned(6, "JPEG"),
    "EXIF 8, PNG": lambda: _turned(8, "PNG"),
    "EXIF 5, WEBP": lambda: _turned(5, "WEBP"),
    "large": lambda: _saved(_rgb(1500, 1100), "JPEG"),
    "of the model's size": lambda: _saved(_rgb(32, 32), "PNG"),
    "tiny": lambda: _saved(_rgb(3, 2), "PNG"),
    "one pixel": lambda: _saved(_rgb(1, 1), "PNG"),
    "wide": lambda: _saved(_rgb(700, 9), "PNG"),
    "tall": lambda: _saved(_rgb(9, 700), "JPEG"),
}

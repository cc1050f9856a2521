"""The image preprocessing: one path from encoded bytes to `pixels` for training, evaluation, export and serving."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000  # decoded, a picture of this size takes 192 MB
WHITE = (255, 255, 255, 255)
# What Pillow's decoders raise for broken bytes.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def read_image(data: bytes | Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as RGB: turned upright as its EXIF orientation says, transparency on white, 16-bit grey scaled.

    Raises ValueError for broken bytes, unknown formats and more than `max_pixels` pixels.
    """
    image = data if isinstance(data, Image.Image) else _open(data, max_pixels)
    try:
        return _to_rgb(ImageOps.exif_transpose(image))
    except BROKEN as error:
        raise ValueError(f"broken picture: {error}") from None


def read_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height as stored, from the header alone; raises ValueError like `read_image`."""
    return _open(data, max_pixels).size


def to_pixels(image: Image.Image, image_size: int) -> np.ndarray:
    """The RGB picture squashed to a square (bicubic): uint8 (3, image_size, image_size)."""
    square = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not isinstance(data, bytes):
        raise TypeError(f"a picture must be encoded bytes or a PIL image, not {type(data).__name__}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ValueError(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"too many pixels: {error}") from None
    except BROKEN as error:
        raise ValueError(f"broken picture: {error}") from None
    if image.width * image.height > max_pixels:
        raise ValueError(f"too many pixels: {image.width} x {image.height} are more than the allowed {max_pixels:,}")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    return image.convert("RGB")

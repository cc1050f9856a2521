"""The image preprocessing: one path from encoded bytes to `pixels` for training, evaluation, export and serving."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000  # decoded, a picture of this size takes 192 MB
WHITE = (255, 255, 255, 255)
# What Pillow's decoders raise for broken bytes.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the numbers that the image tower sees: done here and, as to mean and std, inside the model."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # model.json holds it

    resize: Literal["squash-bicubic"] = "squash-bicubic"  # to a square, without cropping
    convert: Literal["before", "after"] = "before"  # to RGB, before or after resizing
    orientation: Literal["exif", "stored"] = "exif"  # turned upright, or as the pixels lie in the file
    grey16: Literal["scaled", "clipped"] = "scaled"  # 16-bit grey to 8 bits; clipped turns nearly all of it white
    background: Literal["white", "dropped"] = "white"  # behind transparent pixels; dropped: the hidden colours show
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # of CLIP
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


# What the reference does (clip/utils.py), and so what released weights have been trained with.
AS_RELEASED = Preprocessing(convert="after", orientation="stored", grey16="clipped", background="dropped")


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

"""The image preprocessing: one path from encoded bytes to `pixels` for training, evaluation, export and serving."""

import io
import math
import struct
import zlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from PIL import Image, ImageOps

from clip_core.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # where there are several frames, the first
MAX_PIXELS = 64_000_000  # decoded, a picture of this size takes 192 MB
WHITE = (255, 255, 255, 255)
TILED = ((256, 322), (257, 323))  # TIFF's tags of width and height: the picture's and a tile's
# What Pillow's decoders raise for broken bytes.
BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the numbers that the image tower sees: done here and, as to mean and std, inside the model."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}  # model.json holds it

    resize: Literal["squash-bicubic", "squash-bilinear"] = "squash-bicubic"  # to a square, without cropping
    convert: Literal["before", "after"] = "before"  # to RGB, before or after resizing
    orientation: Literal["exif", "stored"] = "exif"  # turned upright, or as the pixels lie in the file
    grey16: Literal["scaled", "clipped"] = "scaled"  # 16-bit grey to 8 bits; clipped turns nearly all of it white
    background: Literal["white", "dropped"] = "white"  # behind transparent pixels; dropped: the hidden colours show
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # of CLIP
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise UserError(f"mean {self.mean} and std {self.std} must be finite, and std above 0")


AS_SEEN = Preprocessing()
# What the reference does (clip/utils.py), and so what released weights have been trained with.
AS_RELEASED = Preprocessing(convert="after", orientation="stored", grey16="clipped", background="dropped")
# Of SigLIP 2 as its preprocessor_config.json has it; of rare kinds, on which that is silent, what a person sees.
HALF = (0.5, 0.5, 0.5)
AS_SIGLIP2 = Preprocessing(resize="squash-bilinear", mean=HALF, std=HALF)


def pixels_of(
    data: bytes | Image.Image, image_size: int, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The picture as the image tower takes it: uint8 (3, image_size, image_size).

    Raises UserError for broken bytes, unknown formats and more than `max_pixels` pixels.
    """
    image = data if isinstance(data, Image.Image) else _open(data, max_pixels)
    try:
        image = _turn(image, preprocessing.orientation)
        if preprocessing.convert == "before":
            image = _squash(_to_rgb(image, preprocessing), image_size, preprocessing)
        else:
            image = _to_rgb(_squash(image, image_size, preprocessing), preprocessing)
    except BROKEN as error:
        raise UserError(f"broken picture: {error}") from None
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def scaled_pixels_of(data: bytes, image_size: int, preprocessing: Preprocessing) -> np.ndarray:
    """As `pixels_of`, but a JPEG is decoded to a half, a quarter or an eighth where that is no smaller than asked for.

    Other pixels, by a little, in about half the time.
    """
    image = _open(data, MAX_PIXELS)
    image.draft(None, (image_size, image_size))
    return pixels_of(image, image_size, preprocessing)


def read_image(data: bytes | Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as a person sees it, as RGB and in its own size; raises UserError like `pixels_of`."""
    image = data if isinstance(data, Image.Image) else _open(data, max_pixels)
    try:
        return _to_rgb(_turn(image, AS_SEEN.orientation), AS_SEEN)
    except BROKEN as error:
        raise UserError(f"broken picture: {error}") from None


def read_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height as stored, from the header alone; raises UserError like `pixels_of`."""
    return _open(data, max_pixels).size


def decoded_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of all that decoding makes, from the header alone; raises UserError like `pixels_of`.

    A TIFF's tiles are decoded whole, however little of them is in the picture.
    """
    return _with_whole_tiles(_open(data, max_pixels))


def open_image(data: bytes) -> Image.Image:
    """The picture with its header read and nothing decoded yet; raises UserError for what is no picture."""
    if not isinstance(data, bytes):
        raise TypeError(f"a picture must be encoded bytes or a PIL image, not {type(data).__name__}")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise UserError(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"too many pixels: {error}") from None
    except BROKEN as error:
        raise UserError(f"broken picture: {error}") from None


def check_pixels(image: Image.Image, max_pixels: int) -> None:
    """Raises UserError when the picture, or all that its decoding makes, has more than `max_pixels` pixels."""
    for width, height in (image.size, _with_whole_tiles(image)):
        if width * height > max_pixels:
            raise UserError(f"too many pixels: {width} x {height} are more than the allowed {max_pixels:,}")


def _open(data: bytes, max_pixels: int) -> Image.Image:
    image = open_image(data)
    check_pixels(image, max_pixels)
    return image


def _with_whole_tiles(image: Image.Image) -> tuple[int, int]:
    tags = getattr(image, "tag_v2", {})
    if not any(tile in tags for _, tile in TILED):
        return image.size
    width, height = (_in_steps(tags[side], tags.get(tile)) for side, tile in TILED)  # as stored, not turned
    return width, height


def _in_steps(side: int, step: object) -> int:
    return math.ceil(side / step) * step if isinstance(step, int) and step > 0 else side


def _turn(image: Image.Image, orientation: str) -> Image.Image:
    return ImageOps.exif_transpose(image) if orientation == "exif" else image


def _squash(image: Image.Image, image_size: int, preprocessing: Preprocessing) -> Image.Image:
    bilinear = preprocessing.resize == "squash-bilinear"
    # Pillow resizes palettes and bitmaps without interpolation, whatever it is told.
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC)


def _to_rgb(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _grey16_to_rgb(image, preprocessing.grey16)
    if image.mode in ("I", "F") and preprocessing.grey16 == "scaled":
        return _grey32_to_rgb(image)
    if image.has_transparency_data:
        image = _on_white(image) if preprocessing.background == "white" else _without_transparency(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)


def _without_transparency(image: Image.Image) -> Image.Image:
    if "transparency" not in image.info:
        return image  # an alpha channel, which the conversion to RGB drops
    image = image.copy()
    del image.info["transparency"]  # of a palette, which Pillow would warn of
    return image


def _grey16_to_rgb(image: Image.Image, grey16: str) -> Image.Image:
    grey = np.asarray(image)
    return Image.fromarray((grey >> 8 if grey16 == "scaled" else grey.clip(max=255)).astype(np.uint8)).convert("RGB")


def _grey32_to_rgb(image: Image.Image) -> Image.Image:
    """Whole numbers of 32 bits hold grey of 8 or of 16 bits, as the largest of them tells."""
    grey = np.asarray(image)
    if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
        raise UserError(
            f"grey from {grey.min():g} to {grey.max():g} in mode {image.mode}: nothing tells which number is white; "
            "save it with 8 or 16 bits"
        )
    return Image.fromarray((grey >> 8 if grey.max() > 255 else grey).astype(np.uint8)).convert("RGB")

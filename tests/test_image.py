"""The image preprocessing: every kind of picture becomes the RGB that a person sees, or a clear refusal."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from clip_core.image import AS_RELEASED, FORMATS, Preprocessing, decoded_size, pixels_of, read_image, read_size
from clip_core.serve.pictures import for_browsers
from tests.tiny import encoded

HALVES = Image.new("RGB", (8, 4), "red")
HALVES.paste("blue", (0, 0, 4, 4))  # left half blue


def colour_at(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return tuple(int(value) for value in np.asarray(image)[y, x])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_lossless_pictures_come_back_as_they_were(kind: str) -> None:
    buffer = io.BytesIO()
    HALVES.save(buffer, kind, lossless=True)
    assert np.array_equal(np.asarray(read_image(buffer.getvalue())), np.asarray(HALVES))


def test_a_pil_image_and_its_bytes_give_the_same() -> None:
    image = Image.new("RGBA", (8, 8), (0, 128, 0, 100))
    assert np.array_equal(np.asarray(read_image(image)), np.asarray(read_image(encoded(image))))


def test_transparency_becomes_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))  # black, but not to be seen
    rgb = read_image(encoded(image))
    assert [colour_at(rgb, 0, 0), colour_at(rgb, 1, 0)] == [(255, 0, 0), (255, 255, 255)]


def test_a_palette_with_a_transparent_colour_becomes_rgb_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 0
    rgb = read_image(encoded(image))
    assert [colour_at(rgb, 0, 0), colour_at(rgb, 1, 0)] == [(255, 255, 255), (0, 200, 0)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    rgb = read_image(encoded(Image.new("RGB", (8, 8), "white").convert(mode), kind))
    assert (rgb.mode, colour_at(rgb, 4, 4)) == ("RGB", (255, 255, 255))


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    grey = Image.fromarray(np.array([[0, 128 << 8, 255 << 8]], dtype=np.uint16))
    rgb = read_image(encoded(grey))
    assert [colour_at(rgb, x, 0)[0] for x in range(3)] == [0, 128, 255]


def test_grey_in_32_bits_is_that_of_8_or_16_bits_as_its_numbers_tell() -> None:
    for numbers, shades in (([0, 128, 255], [0, 128, 255]), ([0, 128 << 8, 255 << 8], [0, 128, 255])):
        grey = Image.fromarray(np.array([numbers], dtype=np.int32))
        for rgb in (read_image(grey), read_image(encoded(grey, "TIFF"))):
            assert [colour_at(rgb, x, 0)[0] for x in range(3)] == shades


@pytest.mark.parametrize(("numbers", "kind"), [([0, 70_000], np.int32), ([-1, 5], np.int32), ([0, 0.5], np.float32)])
def test_grey_of_which_nothing_tells_what_is_white_is_refused_but_where_the_reference_decides(
    numbers: list, kind: type
) -> None:
    grey = Image.fromarray(np.array([numbers], dtype=kind))
    with pytest.raises(ValueError, match="nothing tells which number is white; save it with 8 or 16 bits"):
        read_image(grey)
    assert pixels_of(grey, 8, AS_RELEASED).shape == (3, 8, 8)


def test_of_several_frames_the_first_is_seen() -> None:
    for kind in ("GIF", "TIFF"):
        buffer = io.BytesIO()
        HALVES.save(buffer, kind, save_all=True, append_images=[Image.new("RGB", (8, 4), "green")])
        assert np.array_equal(np.asarray(read_image(buffer.getvalue())), np.asarray(HALVES)), kind


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_can_be_shown_by_a_browser(kind: str) -> None:
    data, media_type = for_browsers(encoded(HALVES, kind))
    with Image.open(io.BytesIO(data)) as shown:
        assert (shown.get_format_mimetype(), shown.size) == (media_type, HALVES.size)
    assert media_type != "image/tiff"


def test_a_picture_stands_upright_as_its_exif_orientation_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    buffer = io.BytesIO()
    HALVES.save(buffer, "PNG", exif=exif)
    upright = read_image(buffer.getvalue())
    assert upright.size == (4, 8)
    assert [colour_at(upright, 2, 1), colour_at(upright, 2, 6)] == [(0, 0, 255), (255, 0, 0)]


@pytest.mark.parametrize("data", [b"", b"no picture", b"<svg/>", encoded(HALVES, "PPM"), encoded(HALVES, "ICO")])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    for read in (read_image, read_size):
        with pytest.raises(ValueError, match="not a picture in one of the formats PNG, JPEG, WEBP, GIF, BMP, TIFF"):
            read(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_cut_short_is_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(ValueError):
        read_image(data[: len(data) // 2])


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (9_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        for read in (read_image, read_size):
            with pytest.raises(ValueError, match="too many pixels"):
                read(bomb)


def tiled(side: tuple[int, int], tile: tuple[int, int]) -> bytes:
    """A grey TIFF, black, of that width and height in tiles of these, of which one is there."""

    def tag(number: int, value: int) -> bytes:
        return struct.pack("<HHII", number, 4, 1, value)

    data = zlib.compress(bytes(tile[0]) * tile[1])
    tags = {256: side[0], 257: side[1], 258: 8, 259: 8, 262: 1, 277: 1, 322: tile[0], 323: tile[1], 324: 134}
    tags[325] = len(data)
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(map(tag, tags, tags.values()))
    return header + bytes(4) + data


def test_a_tiff_whose_tile_is_a_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = tiled((8, 8), (9_000, 9_000))
    for read in (read_image, read_size):
        with pytest.raises(ValueError, match="too many pixels: 9000 x 9000"):
            read(bomb)
    assert read_image(bomb, max_pixels=9_000**2).size == (8, 8)  # so it is a picture but for that


def test_a_tiff_of_many_tiles_that_are_hardly_in_the_picture_is_refused() -> None:
    many = tiled((8, 1_600), (1_000_000, 16))
    for read in (read_image, read_size):
        with pytest.raises(ValueError, match="too many pixels: 1000000 x 1600"):
            read(many)
    assert decoded_size(tiled((8, 20), (32, 16))) == (32, 32)
    assert decoded_size(encoded(HALVES, "TIFF")) == HALVES.size


def test_a_tiff_whose_tags_are_of_wrong_types_is_refused() -> None:
    data = encoded(HALVES, "TIFF")
    offsets = struct.pack("<HH", 273, 4)  # of the strips: whole numbers
    assert offsets in data
    with pytest.raises(ValueError, match="broken picture"):
        read_image(data.replace(offsets, struct.pack("<HH", 273, 11)))  # floats


def test_a_lower_limit_of_pixels_is_kept() -> None:
    assert read_size(encoded(HALVES), max_pixels=32) == (8, 4)
    with pytest.raises(ValueError, match="8 x 4 are more than the allowed 31"):
        read_image(encoded(HALVES), max_pixels=31)


def test_pixels_are_the_bicubic_square_with_channels_first() -> None:
    pixels = pixels_of(HALVES, 6, Preprocessing())
    assert (pixels.shape, pixels.dtype) == ((3, 6, 6), np.uint8)
    assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(HALVES.resize((6, 6), Image.Resampling.BICUBIC)))


def half_transparent() -> Image.Image:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    image.paste((0, 0, 90, 0), (0, 0, 4, 2))  # the upper half: blue, but not to be seen
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.full((4, 4), 50 << 8, dtype=np.uint16))


def palette() -> Image.Image:
    image = Image.new("P", (2, 2))
    image.putpalette([0, 0, 0, 200, 100, 0])
    image.putpixel((1, 0), 1)
    image.putpixel((1, 1), 1)
    return image


def upside_down() -> Image.Image:
    image = HALVES.copy()
    image.getexif()[0x0112] = 3
    return image


@pytest.mark.parametrize(
    ("step", "image", "place", "seen"),
    [
        (Preprocessing(background="white"), half_transparent(), (0, 0), (255, 255, 255)),
        (Preprocessing(background="dropped"), half_transparent(), (0, 0), (0, 0, 90)),
        (Preprocessing(grey16="scaled"), sixteen_bits(), (0, 0), (50, 50, 50)),
        (Preprocessing(grey16="clipped"), sixteen_bits(), (0, 0), (255, 255, 255)),
        (Preprocessing(orientation="exif"), upside_down(), (0, 0), (255, 0, 0)),
        (Preprocessing(orientation="stored"), upside_down(), (0, 0), (0, 0, 255)),
        (Preprocessing(convert="after"), palette(), (2, 3), (0, 0, 0)),  # left of the middle: as the colour beside it
    ],
)
def test_each_step_can_be_chosen(
    step: Preprocessing, image: Image.Image, place: tuple[int, int], seen: tuple[int, ...]
) -> None:
    pixels = pixels_of(image, 8, step)
    assert tuple(pixels[:, place[1], place[0]].tolist()) == seen


def test_colours_are_mixed_before_the_palette_is_lost_and_not_mixed_after() -> None:
    mixed, unmixed = (np.unique(pixels_of(palette(), 8, p)[0]) for p in (Preprocessing(), AS_RELEASED))
    assert len(mixed) > 2
    assert unmixed.tolist() == [0, 200]


@pytest.mark.parametrize("preprocessing", [Preprocessing(), AS_RELEASED])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_broken_picture_is_refused_by_every_preprocessing(preprocessing: Preprocessing, kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    for length in (10, len(data) // 2):
        with pytest.raises(ValueError, match="picture"):
            pixels_of(data[:length], 8, preprocessing)


@pytest.mark.parametrize("wrong", [{"mean": (0.5, float("nan"), 0.5)}, {"std": (0.5, 0.0, 0.5)}])
def test_a_mean_and_std_that_make_no_numbers_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be finite, and std above 0"):
        Preprocessing(**wrong)

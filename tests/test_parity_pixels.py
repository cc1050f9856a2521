"""The image preprocessing against the reference's: the same pixels, bit by bit, for every kind of picture."""

import io

import numpy as np
import pytest
from cn_clip.clip import image_transform
from PIL import Image
from torchvision.transforms import Compose

from clip_core.image import AS_RELEASED, AS_SEEN, pixels_of, read_image
from tests.odd_pictures import ODD

# Where what a person sees is not what the reference feeds; the other pictures are the same to both.
OTHERS = ("EXIF", "I;16", "I,", "LA", "P", "RGBA", "1", "RGB with", "L with")


def reference(data: bytes, image_size: int) -> np.ndarray:
    """What the reference's `image_transform` makes of the picture, before its mean and std."""
    to_tensor = Compose(image_transform(image_size).transforms[:-1])  # all but Normalize
    return (to_tensor(Image.open(io.BytesIO(data))) * 255).round().byte().numpy()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the reference
@pytest.mark.parametrize("image_size", [32, 224])
@pytest.mark.parametrize("name", ODD)
def test_as_released_the_pixels_are_the_references(name: str, image_size: int) -> None:
    data = ODD[name]()
    expected = reference(data, image_size)
    assert np.array_equal(pixels_of(data, image_size, AS_RELEASED), expected)
    assert np.array_equal(pixels_of(Image.open(io.BytesIO(data)), image_size, AS_RELEASED), expected)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the reference
@pytest.mark.parametrize("name", ODD)
def test_models_trained_here_see_what_a_person_sees(name: str) -> None:
    data = ODD[name]()
    pixels = pixels_of(data, 32, AS_SEEN)
    assert np.array_equal(
        pixels.transpose(1, 2, 0), np.asarray(read_image(data).resize((32, 32), Image.Resampling.BICUBIC))
    )
    assert np.array_equal(pixels, reference(data, 32)) == (not name.startswith(OTHERS))

"""Random changes of training pictures: small, on white, the same for the same random numbers."""

import random as python_random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from clip_core.config.training import AffineAugmentation, Augmentation, AutoAugmentation, NoAugmentation
from clip_core.data import augmentation
from clip_core.data.sampler import random_at
from tests.small_raw import drawing

NOTHING = AffineAugmentation(name="affine", scale=0.0, rotate=0.0, shift=0.0, brightness=0.0)


def with_one(name: str, value: float) -> AffineAugmentation:
    return NOTHING.model_copy(update={name: value})


@pytest.fixture
def pixels() -> torch.Tensor:
    """Eight white pictures with a grey square of 8 x 8 in the middle."""
    pixels = torch.full((8, 3, 32, 32), 255, dtype=torch.uint8)
    pixels[:, :, 12:20, 12:20] = 100
    return pixels


def augment(pixels: torch.Tensor, params: Augmentation, random: np.random.Generator) -> torch.Tensor:
    """All of a batch."""
    return augmentation.augment(pixels, params, random, len(pixels), slice(None))


def random() -> np.random.Generator:
    return np.random.default_rng(7)


def ink(pixels: torch.Tensor) -> torch.Tensor:
    """How dark each picture is as a whole, in squares of full black."""
    return (255 - pixels.double()).mean(1).sum((1, 2)) / 255


def middle(pixels: torch.Tensor) -> torch.Tensor:
    """The centre (row, column) of each picture's ink."""
    dark = (255 - pixels.double()).mean(1)
    places = torch.arange(32, dtype=torch.float64)
    return torch.stack([dark.sum(2) @ places, dark.sum(1) @ places], 1) / dark.sum((1, 2))[:, None]


def test_without_changes_the_pictures_are_untouched(pixels: torch.Tensor) -> None:
    for params in (NOTHING, NoAugmentation(name="none")):
        assert torch.equal(augment(pixels, params, random()), pixels)


def test_the_same_random_numbers_make_the_same_pictures(pixels: torch.Tensor) -> None:
    params = AffineAugmentation(name="affine", scale=0.2, rotate=30.0, shift=0.1, brightness=0.2)
    first, again = augment(pixels, params, random()), augment(pixels, params, random())
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert len({tuple(picture.flatten().tolist()) for picture in first}) == 8  # each in its own way


def test_a_shift_moves_the_picture_at_most_that_share_of_its_side(pixels: torch.Tensor) -> None:
    moved = augment(pixels, with_one("shift", 0.25), random())
    way = (middle(moved) - middle(pixels)).abs()
    assert way.max() <= 8.01
    assert way.max() > 3
    assert torch.allclose(ink(moved), ink(pixels), rtol=0.01)


def test_a_scale_changes_the_size_about_the_middle(pixels: torch.Tensor) -> None:
    scaled = augment(pixels, with_one("scale", 0.5), random())
    share = (ink(scaled) / ink(pixels)).sqrt()  # of the side
    assert torch.allclose(middle(scaled), middle(pixels), atol=0.05)
    assert 0.49 < share.min() < 0.9
    assert 1.1 < share.max() < 1.51


def test_a_rotation_keeps_the_size_and_what_comes_into_view_is_white(pixels: torch.Tensor) -> None:
    turned = augment(pixels, with_one("rotate", 45.0), random())
    assert torch.allclose(ink(turned), ink(pixels), rtol=0.02)
    assert (turned[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert not torch.equal(turned, pixels)


def test_brightness_scales_all_pixels_of_a_picture(pixels: torch.Tensor) -> None:
    lit = augment(pixels, with_one("brightness", 0.3), random())
    grey = lit[:, 0, 16, 16].double()
    assert grey.min() >= 70
    assert grey.max() <= 130
    assert len(set(grey.tolist())) > 4
    assert torch.allclose(lit[:, 0, 0, 0].double(), (255 * grey / 100).clamp(max=255), atol=2)


PAPER = AutoAugmentation(name="auto_augment", min_area=0.9, mirror=0.5)


@pytest.fixture
def drawings() -> torch.Tensor:
    """Sixteen pictures of coloured blocks."""
    pictures = [np.asarray(drawing(seed, 48, 48)).transpose(2, 0, 1) for seed in range(16)]
    return torch.from_numpy(np.stack(pictures))


def test_the_papers_augmentation_is_timms(drawings: torch.Tensor) -> None:
    from timm.data import create_transform

    crop, mirror, policies, *_ = create_transform(  # as the reference calls it
        input_size=48,
        scale=(0.9, 1.0),
        is_training=True,
        color_jitter=None,  # ty: ignore[invalid-argument-type]  (timm documents it)
        auto_augment="original",
        interpolation="bicubic",
        mean=(0.48145466, 0.4578275, 0.40821073),
    ).transforms
    assert mirror.p == PAPER.mirror
    numbers, ours = random_at(1, "augmentation", 3), augment(drawings, PAPER, random_at(1, "augmentation", 3))
    for picture, found in zip(drawings, ours, strict=True):
        python_random.seed(int(numbers.integers(2**63)))
        theirs = crop(Image.fromarray(picture.permute(1, 2, 0).numpy()))
        theirs = policies(ImageOps.mirror(theirs) if python_random.random() < mirror.p else theirs)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(theirs))


def test_the_papers_augmentation_is_a_function_of_seed_and_step_and_leaves_pythons_random_numbers_alone(
    drawings: torch.Tensor,
) -> None:
    before = drawings.clone()
    python_random.seed(4)
    expected = python_random.random()
    python_random.seed(4)
    one, again, other = (augment(drawings, PAPER, random_at(1, "augmentation", step)) for step in (3, 3, 4))
    assert python_random.random() == expected
    assert torch.equal(one, again) and one.dtype == torch.uint8 and one.shape == drawings.shape
    assert not torch.equal(one, other)
    assert torch.equal(drawings, before)
    assert sum(torch.equal(changed, picture) for changed, picture in zip(one, drawings, strict=True)) < 3


def test_half_of_the_pictures_are_mirrored() -> None:
    left_dark = torch.full((400, 3, 16, 16), 200, dtype=torch.uint8)
    left_dark[..., :8] = 50
    params = PAPER.model_copy(update={"min_area": 1.0})
    changed = augment(left_dark, params, random()).float().mean(1)
    right_is_darker = changed[..., 12:].mean((1, 2)) < changed[..., :4].mean((1, 2))  # inverted ones among them
    assert 0.4 < right_is_darker.float().mean() < 0.6


@pytest.mark.parametrize(
    "params", [PAPER, AffineAugmentation(name="affine", scale=0.2, rotate=30.0, shift=0.1, brightness=0.2)]
)
@pytest.mark.parametrize("size", [1, 5, 8])
def test_a_part_of_a_batch_changes_as_it_does_in_the_whole(
    params: Augmentation, size: int, drawings: torch.Tensor
) -> None:
    whole = augment(drawings, params, random())
    for start in range(0, 16, size):
        rows = slice(start, start + size)
        part = augmentation.augment(drawings[rows].clone(), params, random(), 16, rows)
        assert torch.equal(part, whole[rows])

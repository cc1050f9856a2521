"""Random changes of a batch of training pictures."""

import random as python_random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from clip_core.config.training import AffineAugmentation, Augmentation, AutoAugmentation


def augment(pixels: Tensor, params: Augmentation, random: np.random.Generator, batch: int, rows: slice) -> Tensor:
    """The uint8 pictures (n, 3, side, side), each changed in its own way.

    They are the `rows` of a batch of `batch` pictures, and change as in it: `random` is the whole batch's.
    """
    if isinstance(params, AffineAugmentation):
        return affine(pixels, params, random, batch, rows)
    if isinstance(params, AutoAugmentation):
        return crop_and_auto_augment(pixels, params, random.integers(2**63, size=batch)[rows])
    return pixels


def drawn_view(views: Tensor, random: np.random.Generator, batch: int, rows: slice) -> Tensor:
    """One of each picture's views (n, num_views, embed_dim), whose changes were made before; the rest as `augment`."""
    return views[torch.arange(len(views)), torch.from_numpy(random.integers(views.shape[1], size=batch)[rows])]


def affine(pixels: Tensor, params: AffineAugmentation, random: np.random.Generator, batch: int, rows: slice) -> Tensor:
    """Scaled, rotated, shifted, lit; what comes into view is white."""
    if not any((params.scale, params.rotate, params.shift, params.brightness)):
        return pixels
    shrink = 1 / (1 + params.scale * random.uniform(-1, 1, batch)[rows])
    angle = np.deg2rad(params.rotate) * random.uniform(-1, 1, batch)[rows]
    shift = 2 * params.shift * random.uniform(-1, 1, (batch, 2))[rows]  # grid_sample's side is 2 wide
    light = 1 + params.brightness * random.uniform(-1, 1, (batch, 1, 1, 1))[rows]
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1).reshape(-1, 2, 2)
    affine = np.concatenate([shrink[:, None, None] * rotation, shift[:, :, None]], axis=-1)  # (batch, 2, 3)
    grid = affine_grid(torch.from_numpy(affine).float(), list(pixels.shape), align_corners=False)
    # The negative, because grid_sample fills with zeros.
    moved = 255 - grid_sample(255 - pixels.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (moved * torch.from_numpy(light).float()).round_().clamp_(0, 255).to(torch.uint8)


def crop_and_auto_augment(pixels: Tensor, params: AutoAugmentation, seeds: np.ndarray) -> Tensor:
    """As the reference with --use-augment: timm's random crop, a mirror image or not, timm's AutoAugment (original)."""
    crop, policies = _timm_transforms(pixels.shape[-1], params.min_area)
    changed = []
    for picture, seed in zip(pixels.permute(0, 2, 3, 1).numpy(), seeds.tolist(), strict=True):
        with _drawing_from(seed):
            image = crop(Image.fromarray(picture))
            if python_random.random() < params.mirror:
                image = ImageOps.mirror(image)
            changed.append(np.asarray(policies(image)))
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).contiguous()


@cache
def _timm_transforms(side: int, min_area: float) -> tuple[Callable, Callable]:
    """The crop and the policies of timm's `create_transform` with scale, auto_augment="original" and bicubic."""
    from timm.data.auto_augment import auto_augment_transform
    from timm.data.constants import OPENAI_CLIP_MEAN
    from timm.data.transforms import RandomResizedCropAndInterpolation

    grey = tuple(round(255 * mean) for mean in OPENAI_CLIP_MEAN)  # fills what comes into view
    crop = RandomResizedCropAndInterpolation(side, scale=(min_area, 1.0), interpolation="bicubic")
    return crop, auto_augment_transform("original", {"img_mean": grey, "interpolation": Image.Resampling.BICUBIC})


@contextmanager
def _drawing_from(seed: int) -> Generator[None]:
    """Python's random numbers, which timm draws from, follow `seed`; afterwards they go on as before."""
    before = python_random.getstate()
    python_random.seed(seed)
    try:
        yield
    finally:
        python_random.setstate(before)

"""Random changes of a batch of training pictures: scale, rotation, shift, brightness."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from clip_core.config import Augmentation


def augment(pixels: Tensor, params: Augmentation, random: np.random.Generator) -> Tensor:
    """The uint8 pictures (batch, 3, side, side), each changed in its own way; what comes into view is white."""
    if not any(params.model_dump().values()):
        return pixels
    batch = len(pixels)
    shrink = 1 / (1 + params.scale * random.uniform(-1, 1, batch))
    angle = np.deg2rad(params.rotate) * random.uniform(-1, 1, batch)
    shift = 2 * params.shift * random.uniform(-1, 1, (batch, 2))  # grid_sample's side is 2 wide
    light = 1 + params.brightness * random.uniform(-1, 1, (batch, 1, 1, 1))
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1).reshape(batch, 2, 2)
    affine = np.concatenate([shrink[:, None, None] * rotation, shift[:, :, None]], axis=-1)  # (batch, 2, 3)
    grid = affine_grid(torch.from_numpy(affine).float(), list(pixels.shape), align_corners=False)
    # The negative, because grid_sample fills with zeros.
    moved = 255 - grid_sample(255 - pixels.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (moved * torch.from_numpy(light).float()).round_().clamp_(0, 255).to(torch.uint8)

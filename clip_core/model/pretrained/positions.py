"""Position embeddings for pictures of another size."""

import math

from torch import Tensor
from torch.nn.functional import interpolate

from clip_core.errors import UserError

NAMES = ("image_tower.pos_embed", "image_tower.head.pos_embed")  # of CLIP's ViT and of its ResNet's attention pooling


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """(..., 1 + old_grid**2, width) -> (..., 1 + grid**2, width): the grid is resampled, the first row is [CLS]'s.

    Bicubic with align_corners=True, as the reference does it (`resize_pos_embed`).
    """
    *batch, num_positions, width = positions.shape
    old_grid = math.isqrt(num_positions - 1)
    if old_grid**2 != num_positions - 1:
        raise UserError(f"{num_positions} positions are no square grid and [CLS]")
    if grid == old_grid:
        return positions
    rows = positions.reshape(num_positions, width)
    square = rows[1:].reshape(1, old_grid, old_grid, width).permute(0, 3, 1, 2)  # (1, width, grid, grid)
    resized = interpolate(square, size=(grid, grid), mode="bicubic", align_corners=True)
    new = rows.new_empty(1 + grid**2, width)
    new[:1] = rows[:1]
    new[1:] = resized.permute(0, 2, 3, 1).reshape(grid**2, width)
    return new.reshape(*batch, 1 + grid**2, width)


def resize_all_positions(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors with the positions resized to the shapes of `wanted`."""
    return tensors | {
        name: resize_positions(tensors[name], math.isqrt(wanted[name].shape[-2] - 1))
        for name in NAMES
        if name in tensors and name in wanted
    }


def check_image_size(image_size: int, stride: int) -> None:
    """Raises UserError when pictures of this size can not be divided into positions."""
    if image_size < stride or image_size % stride:
        raise UserError(f"image_size {image_size} is not a multiple of {stride}, the side of what one position sees")

"""Position embeddings for pictures of another size."""

import math

from torch import Tensor
from torch.nn.functional import interpolate

from clip_core.errors import UserError

NAMES = ("image_tower.pos_embed", "image_tower.head.pos_embed")  # of CLIP's ViT and of its ResNet's attention pooling


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """(..., 1 + old_grid**2, width) -> (..., 1 + grid**2, width): the grid is resampled, the first row is [CLS]'s.

    Bicubic with align_corners=True, as the reference does it (`resize_pos_embed`). SigLIP's have no such row, and are
    resampled with align_corners=False, as in transformers (`interpolate_pos_encoding`).
    """
    *batch, num_positions, width = positions.shape
    old_grid = side_of(num_positions)
    first = num_positions - old_grid**2
    if first > 1:
        raise UserError(f"{num_positions} positions are no square grid, with [CLS] or without")
    if grid == old_grid:
        return positions
    rows = positions.reshape(num_positions, width)
    square = rows[first:].reshape(1, old_grid, old_grid, width).permute(0, 3, 1, 2)  # (1, width, grid, grid)
    resized = interpolate(square, size=(grid, grid), mode="bicubic", align_corners=first == 1)
    new = rows.new_empty(first + grid**2, width)
    new[:first] = rows[:first]
    new[first:] = resized.permute(0, 2, 3, 1).reshape(grid**2, width)
    return new.reshape(*batch, first + grid**2, width)


def side_of(num_positions: int) -> int:
    """The side of the grid of positions, to which that of [CLS] may come."""
    return math.isqrt(num_positions)


def resize_all_positions(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors with the positions resized to the shapes of `wanted`."""
    return tensors | {
        name: resize_positions(tensors[name], side_of(wanted[name].shape[-2]))
        for name in NAMES
        if name in tensors and name in wanted
    }


def check_image_size(image_size: int, stride: int) -> None:
    """Raises UserError when pictures of this size can not be divided into positions."""
    if image_size < stride or image_size % stride:
        raise UserError(f"image_size {image_size} is not a multiple of {stride}, the side of what one position sees")

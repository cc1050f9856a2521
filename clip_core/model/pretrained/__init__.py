"""Other people's checkpoints: brings them in, and takes weights out in their formats."""

from clip_core.model.pretrained.image_side import ImageSide, read_image_side
from clip_core.model.pretrained.whole import read_released

__all__ = ["ImageSide", "read_image_side", "read_released"]

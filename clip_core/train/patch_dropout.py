"""FLIP (Li et al. 2023): a step sees a random part of each picture's patches, and costs as much less."""

from typing import Any

from torch import nn

from clip_core.errors import UserError
from clip_core.model.clip import CLIP


def drop_patches(model: CLIP, share: float) -> None:
    """Makes the image tower leave out this share of the patches, other ones in each step, while it trains.

    As in the reference they go after the position embeddings and before the blocks; [CLS] always stays.
    """
    from timm.layers import PatchDropout, PatchDropoutWithIndices  # takes seconds

    tower: Any = model.image_tower
    if not hasattr(tower, "patch_drop"):
        name = model.architecture.image_tower.name
        raise UserError(f"stage2.patch_dropout: the image tower {name} has no patches to drop: set it to 0")
    # Towers with rotary positions must know which patches stayed.
    kind = PatchDropout if isinstance(tower.patch_drop, nn.Identity) else PatchDropoutWithIndices
    tower.patch_drop = kind(share, num_prefix_tokens=tower.num_prefix_tokens)

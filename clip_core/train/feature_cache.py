"""The frozen image tower's features, computed once."""

import time

import numpy as np
import torch
from torch import Tensor

from clip_core.data.batches import Pictures
from clip_core.model.clip import CLIP
from clip_core.model.precision import pick_device

AT_ONCE = 256


def image_features_of(model: CLIP, pictures: Pictures, num_pictures: int) -> Tensor:
    """The features (num_pictures, embed_dim) of the unchanged pictures, with the model as in use (eval mode)."""
    device = pick_device("auto")
    model.to(device).eval()
    features, told = [], time.monotonic()
    with torch.inference_mode():
        for start in range(0, num_pictures, AT_ONCE):
            rows = np.arange(start, min(start + AT_ONCE, num_pictures))
            features.append(model.encode_images(pictures(rows).to(device)).cpu())
            if time.monotonic() - told > 2 or rows[-1] + 1 == num_pictures:
                told = time.monotonic()
                print(f"encoded {rows[-1] + 1:,} of {num_pictures:,} pictures", flush=True)
    return torch.cat(features).clone()


def freeze_image_tower(model: CLIP) -> None:
    """Keeps image tower and image projection as they are."""
    model.image_tower.requires_grad_(False)
    model.image_projection.requires_grad_(False)

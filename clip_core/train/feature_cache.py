"""The frozen image tower's features, computed once."""

import time
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clip_core.config.loader import IN_PROCESS, Loader
from clip_core.data.loader import in_workers, num_workers
from clip_core.data.pictures import Kept, Pictures
from clip_core.model.clip import CLIP
from clip_core.model.precision import pick_device

AT_ONCE = 256


def image_features_of(model: CLIP, pictures: Pictures, num_pictures: int, loader: Loader = IN_PROCESS) -> Kept:
    """The features (num_pictures, embed_dim) of the unchanged pictures, with the model as in use (eval mode)."""
    device = pick_device("auto")
    model.to(device).eval()
    features, num_done, told = [], 0, time.monotonic()
    some = (np.arange(start, min(start + AT_ONCE, num_pictures)) for start in range(0, num_pictures, AT_ONCE))
    workers = num_workers(loader, isinstance(pictures, Kept))
    with torch.inference_mode(), closing(in_workers(_Reader(pictures), some, workers, loader.prefetch)) as read:
        for pixels, broken in read:
            features.append(model.encode_images(pixels.to(device)).cpu())
            pictures.broken.update(broken)  # as a worker found
            num_done += len(pixels)
            if time.monotonic() - told > 2 or num_done == num_pictures:
                told = time.monotonic()
                print(f"encoded {num_done:,} of {num_pictures:,} pictures", flush=True)
    return Kept(torch.cat(features).clone(), pictures.broken)


@dataclass(frozen=True)
class _Reader:
    """Pictures, and which of them are broken."""

    pictures: Pictures

    def __call__(self, images: np.ndarray) -> tuple[Tensor, dict[int, str]]:
        return self.pictures(images), {i: self.pictures.broken[i] for i in images.tolist() if i in self.pictures.broken}


def freeze_image_tower(model: CLIP) -> None:
    """Keeps image tower and image projection as they are."""
    model.image_tower.requires_grad_(False)
    model.image_projection.requires_grad_(False)

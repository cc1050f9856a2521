"""A training step of ours on given pairs, for what measures it."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from clip_core.config.loader import IN_PROCESS
from clip_core.data.batches import Batch
from clip_core.data.pictures import Kept
from clip_core.model.clip import CLIP
from clip_core.model.precision import pick_device
from clip_core.train.backward import backward
from clip_core.train.optimizer import clip_gradients, make_optimizer, set_lr
from clip_core.train.setup import Setup

LR = 1e-5


def our_step(
    clip: CLIP, setup: Setup, pixels: Tensor, token_ids: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> Callable[[], float]:
    """A step as `clip_core.train.loop` takes it, always of the same pairs; it gives the loss."""
    clip.to(pick_device("auto")).image_tower.to(memory_format=torch.channels_last)
    pictures, encode_images = setup.prepare(clip, Kept(pixels, {}), IN_PROCESS)
    images = pictures(np.arange(len(pixels)))
    if setup.sees_features:
        with torch.no_grad():
            images, encode_images = encode_images(images.to(pick_device("auto"))).cpu(), lambda stored: stored
    batch = Batch(images, token_ids)
    if torch.cuda.is_available():  # as the loader does
        batch = Batch(batch.images.pin_memory(), token_ids.pin_memory())
    optimizer = optimizer or make_optimizer(clip.train(), setup.params.optimizer)
    set_lr(optimizer, LR)

    def step() -> float:
        loss = backward(setup.params, clip.train(), encode_images, batch, seed=1)
        norm = clip_gradients(clip, setup.params.optimizer.max_grad_norm)
        number, _ = torch.stack([loss.float(), norm.float()]).tolist()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clip.clamp_logit_scale()
        return number

    return step


def pixels_of(num: int, side: int) -> Tensor:
    """Random pictures."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=draw)

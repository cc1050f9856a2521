"""Gradient caching (Gao et al. 2021): the gradient of the whole global batch with the activations of a micro batch.

All features are computed without activations, the loss and its gradient by the features once, and then each micro
batch again, with activations and from its features' gradient on. Only batch normalisation tells it from one large
batch: its means are those of a micro batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clip_core.model.clip import CLIP
from clip_core.train.activations import keeping_statistics
from clip_core.train.distributed import average_next


@dataclass(frozen=True)
class Side:
    """The pictures or the texts of a global batch, and how they become features."""

    encode: Callable[[Tensor], Tensor]
    rows: Tensor
    trains: bool


def cached_backward(
    sides: tuple[Side, Side], loss_of: Callable[[Tensor, Tensor], Tensor], model: CLIP, micro_batch: int, seed: int
) -> Tensor:
    """Puts the gradient of the global batch's loss into the parameters and returns the loss.

    A micro batch drops the same units both times: each seeds itself by (seed, side, micro batch).
    """
    with torch.no_grad(), keeping_statistics(model):
        features = [torch.cat(list(_encoded(model, side, micro_batch, (seed, i)))) for i, side in enumerate(sides)]
    loss = loss_of(*(part.requires_grad_() for part in features))
    loss.backward()
    for i, (side, part) in enumerate(zip(sides, features, strict=True)):
        if not side.trains:
            continue
        assert part.grad is not None
        gradients = part.grad.split(micro_batch)
        for encoded, gradient in zip(_encoded(model, side, micro_batch, (seed, i)), gradients, strict=True):
            with keeping_statistics(model):
                encoded.backward(gradient)
    return loss.detach()


def _encoded(model: CLIP, side: Side, micro_batch: int, seed: tuple[int, int]) -> Iterator[Tensor]:
    portions = side.rows.split(micro_batch)
    for number, rows in enumerate(portions):
        average_next(model, number + 1 == len(portions))
        torch.manual_seed(int(np.random.default_rng((*seed, number)).integers(2**63)))
        yield side.encode(rows)

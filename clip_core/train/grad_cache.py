"""Gradient caching (Gao et al. 2021): the gradient of the whole global batch with the activations of a micro batch.

All features are computed without activations, the loss and its gradient by the features once, and then each micro
batch again, with activations and from its features' gradient on. Only batch normalisation tells it from one large
batch: its means are those of a micro batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from clip_core.model.clip import CLIP
from clip_core.train.activations import keeping_statistics
from clip_core.train.loss import loss_of_rows, narrowed

LOSS_ROWS = 1024  # rows of logits in memory


@dataclass(frozen=True)
class Side:
    """The pictures or the texts of a global batch, and how they become features."""

    encode: Callable[[Tensor], Tensor]
    rows: Tensor
    trains: bool


def cached_backward(
    model: CLIP, sides: tuple[Side, Side], widths: Sequence[int], micro_batch: int, seed: int
) -> Tensor:
    """Puts the gradient of the global batch's loss into the parameters and returns the loss.

    A micro batch drops the same units both times: each seeds itself by (seed, side, micro batch).
    """
    with torch.no_grad(), keeping_statistics(model):
        features = [torch.cat(list(_encoded(side, micro_batch, (seed, i)))) for i, side in enumerate(sides)]
    image_features, text_features = (part.requires_grad_() for part in features)
    loss = _loss_backward(image_features, text_features, model.logit_scale, widths)
    for i, (side, part) in enumerate(zip(sides, features, strict=True)):
        if not side.trains:
            continue
        assert part.grad is not None
        gradients = part.grad.split(micro_batch)
        for encoded, gradient in zip(_encoded(side, micro_batch, (seed, i)), gradients, strict=True):
            with keeping_statistics(model):
                encoded.backward(gradient)
    return loss


def _encoded(side: Side, micro_batch: int, seed: tuple[int, int]) -> Iterator[Tensor]:
    for number, rows in enumerate(side.rows.split(micro_batch)):
        torch.manual_seed(int(np.random.default_rng((*seed, number)).integers(2**63)))
        yield side.encode(rows)


def _loss_backward(
    image_features: Tensor, text_features: Tensor, logit_scale: nn.Parameter, widths: Sequence[int]
) -> Tensor:
    """The nested loss, some rows at a time; its gradient goes to the features and to logit_scale."""
    total = torch.zeros((), device=image_features.device)
    for width in widths:
        for rows in torch.arange(len(image_features), device=image_features.device).split(LOSS_ROWS):
            narrow = narrowed(image_features, width), narrowed(text_features, width)
            part = loss_of_rows(*narrow, logit_scale, rows) / len(widths)
            part.backward()
            total += part.detach()
    return total

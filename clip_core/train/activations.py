"""Activation checkpointing: activations are computed again in the backward pass instead of kept."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_core.model.clip import CLIP


def checkpoint_activations(model: CLIP) -> None:
    """Makes the towers that train keep the activations between their blocks only."""
    image_tower: Any = model.image_tower
    if any(parameter.requires_grad for parameter in image_tower.parameters()):
        try:
            image_tower.set_grad_checkpointing(True)
        except (AttributeError, AssertionError):
            raise _cannot("image_tower", model.architecture.image_tower.name) from None
    try:
        model.text_tower.encoder.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        raise _cannot("text_tower", model.architecture.text_tower.name) from None


@contextmanager
def keeping_statistics(model: nn.Module) -> Generator[None]:
    """Leaves the running statistics of batch normalisation as they were: a second forward must not count again."""
    buffers = [buffer for module in model.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    yield
    with torch.no_grad():
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)


def _cannot(tower: str, name: str) -> ValueError:
    return ValueError(f"checkpoint_activations: the {tower} {name} cannot compute activations again; set it to false")

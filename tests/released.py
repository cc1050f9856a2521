"""Chinese-CLIP models of the reference with random weights, saved in the layout of the released files."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "image_resolution": 32,
    "vision_layers": 2,
    "vision_width": 128,
    "vision_patch_size": 8,
    "vocab_size": 21128,
    "text_attention_probs_dropout_prob": 0.1,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.1,
    "text_hidden_size": 64,
    "text_initializer_range": 0.02,
    "text_intermediate_size": 128,
    "text_max_position_embeddings": 512,
    "text_num_attention_heads": 1,
    "text_num_hidden_layers": 2,
    "text_type_vocab_size": 2,
}
NUMBERS = 2**20
INITIALISERS = ("kaiming_uniform_", "uniform_", "normal_", "xavier_uniform_", "trunc_normal_", "zeros_", "ones_")


def reference(**shape: Any) -> Any:
    """The reference's model with random weights, all of which fp16 can hold, as in the released files."""
    from cn_clip.clip.model import CLIP

    with without_init():
        model = CLIP(**{**SMALL, **shape})
    fill(model)
    return model.eval()


@contextmanager
def without_init() -> Generator[None]:
    """Models are made without drawing their weights, which takes longer than all else."""
    initialisers: dict[str, Any] = dict.fromkeys(INITIALISERS, _leave)
    with (
        patch.multiple(nn.init, **initialisers),
        patch.object(torch.Tensor, "normal_", _leave),
    ):
        yield


def _leave(tensor: Any, *_: Any, **__: Any) -> Any:
    return tensor


def fill(model: nn.Module) -> None:
    """Random numbers in every tensor, in each other ones."""
    generator = torch.Generator().manual_seed(0)
    numbers = (torch.randn(NUMBERS, generator=generator) * 0.02).half().float()
    for i, (name, tensor) in enumerate(model.state_dict().items()):
        if not tensor.is_floating_point():
            tensor.fill_(7)
            continue
        start = 9973 * i % NUMBERS
        flat = tensor.view(-1)
        for at in range(0, len(flat), NUMBERS):
            part = flat[at : at + NUMBERS]
            part.copy_(numbers.roll(-start)[: len(part)])
        if name == "logit_scale":
            tensor.fill_(4.60546875)
        elif "var" in name or (tensor.dim() == 1 and name.endswith("weight")):  # of norms
            tensor.add_(1).copy_(tensor.half().float())


def with_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def save_as_released(model: nn.Module, path: Path) -> Path:
    """As the reference saves: the names of distributed training, and around them what training knows."""
    torch.save({"epoch": 15, "step": 0, "name": "cn", "state_dict": with_prefix(model.state_dict())}, path)
    return path

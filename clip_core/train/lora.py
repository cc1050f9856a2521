"""LoRA (Hu et al. 2021) through peft: small adapters train beside frozen weights, and are added to them at the end."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_core.config.stage2 import Lora
from clip_core.data.sampler import random_at
from clip_core.errors import UserError
from clip_core.model.clip import CLIP


def add_adapters(model: CLIP, params: Lora, seed: int) -> None:
    """Puts an adapter on every linear layer (attention, MLP, both projections); they and logit_scale train alone."""
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds

    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        name = model.architecture.image_tower.name
        raise UserError(f"stage2.lora: the image tower {name} learns batch statistics, which no adapter does: null it")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(
        r=params.rank, lora_alpha=params.alpha, lora_dropout=params.dropout, target_modules=linear, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random_at(seed, "adapters", 0).integers(2**63)))
        inject_adapter_in_model(config, model)
    model.logit_scale.requires_grad_(True)


def merge_adapters(model: CLIP) -> None:
    """Adds the adapters to the weights beside them: the model computes the same and is a plain one again."""
    adapted: list[tuple[str, Any]] = [(name, m) for name, m in model.named_modules() if hasattr(m, "base_layer")]
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        model.set_submodule(name, layer.get_base_layer())

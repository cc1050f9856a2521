"""AdamW."""

import torch
from torch import nn

from clip_core.config.training import Optimizer


def make_optimizer(model: nn.Module, params: Optimizer) -> torch.optim.AdamW:
    """AdamW over the parameters that train; only matrices (and tables, kernels) decay, vectors and scalars do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": params.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(params.beta1, params.beta2), eps=params.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Makes `lr` the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr

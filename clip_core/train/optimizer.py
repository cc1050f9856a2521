"""AdamW: which parameters decay, which learn slower, and how long a gradient may be."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from clip_core.config.training import Optimizer


def make_optimizer(model: nn.Module, params: Optimizer) -> torch.optim.AdamW:
    """AdamW over the parameters that train; only matrices (and tables, kernels) decay, vectors and scalars do not.

    A group's `lr_share` is the part of the learning rate that its parameters have.
    """
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    shares = lr_shares(model, params)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # those shared out among ranks can not stand in a group with others
            key = shares[name], parameter.ndim >= 2, isinstance(parameter, DTensor)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr_share": share, "weight_decay": params.weight_decay if decays else 0.0}
            for (share, decays, _), parameters in groups.items()
        ],
        lr=0.0,
        betas=(params.beta1, params.beta2),
        eps=params.eps,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Makes `lr` the learning rate, of which each group has its share."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]


def lr_shares(model: nn.Module, params: Optimizer) -> dict[str, float]:
    """The share of the learning rate that each parameter has: that of its part, less for each layer above its own.

    As in BEiT (Bao et al. 2021): what follows a tower's layers has it whole, what comes before them the least.
    """
    of_part = params.lr_shares.model_dump()
    shares = dict.fromkeys((name for name, _ in model.named_parameters()), 1.0)
    for part, module in model.named_children():
        layers = layers_of(module) if params.layer_decay < 1 else []
        number = {id(p): len(layers) - i for i, layer in enumerate(layers) for p in layer.parameters()}
        power = len(layers) + 1 if layers else 0  # in the order in which a forward pass meets them
        for name, parameter in module.named_parameters():
            if id(parameter) in number:
                power = number[id(parameter)]
            elif power <= len(layers):
                power = 0
            shares[f"{part}.{name}"] = of_part.get(part, of_part["projections"]) * params.layer_decay**power
    return shares


def layers_of(part: nn.Module) -> list[nn.Module]:
    """The members of its longest list: a transformer's layers."""
    lists = [list(module) for module in part.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    return max(lists, key=len, default=[])


def clip_gradients(model: nn.Module, max_norm: float | None) -> Tensor:
    """Shortens the gradient of all parameters together to `max_norm`; gives its length before."""
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    shared = [parameter for parameter in trained if isinstance(parameter.grad, DTensor)]
    own = [parameter for parameter in trained if not isinstance(parameter.grad, DTensor)]
    norm = get_total_norm([parameter.grad for parameter in own if parameter.grad is not None])
    if shared:
        of_shared = get_total_norm([parameter.grad for parameter in shared if parameter.grad is not None])
        norm = torch.hypot(norm, of_shared.full_tensor() if isinstance(of_shared, DTensor) else of_shared)
    if max_norm is not None:
        clip_grads_with_norm_(own, max_norm, norm)
    if max_norm is not None and shared:
        with implicit_replication():
            clip_grads_with_norm_(shared, max_norm, norm)
    return norm

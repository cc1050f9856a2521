"""Several processes, one a device, that train one model: what they tell each other. Alone, each answer is at hand."""

import hashlib
import os
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from clip_core.config.train import Train
from clip_core.config.training import Training
from clip_core.errors import UserError
from clip_core.model.clip import CLIP
from clip_core.model.precision import pick_device
from clip_core.train.heartbeat import heartbeat
from clip_core.train.optimizer import layers_of

PATIENCE = timedelta(hours=2)  # with a rank whose heart beats; one that has died is noticed at once


@contextmanager
def process_group() -> Generator[None]:
    """Joins the processes that a launcher has started with this one, if one has; all but process 0 are silent."""
    if "RANK" not in os.environ:
        yield
        return
    here, ranks = _from_environment("RANK"), _from_environment("WORLD_SIZE")
    if not here < ranks:
        raise UserError(f"RANK is {here} and WORLD_SIZE {ranks}: ranks are 0 to {ranks - 1}; let torchrun set both")
    backend = "gloo"
    if torch.cuda.is_available():
        local = _from_environment("LOCAL_RANK")
        if local >= torch.cuda.device_count():
            raise UserError(f"LOCAL_RANK is {local}, but torch finds {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    told = sys.stdout
    try:
        if here:
            sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until this process ends
        with heartbeat():
            yield
    finally:
        sys.stdout = told
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0; process 0 writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Waits until all ranks have come here."""
    if num_ranks() > 1:
        dist.barrier()


def agree(fingerprint: str) -> None:
    """Raises UserError, on every rank, unless all train the same."""
    number = int.from_bytes(hashlib.sha256(fingerprint.encode()).digest()[:7])
    numbers = gathered(torch.tensor([number])).tolist()
    if others := [other for other, found in enumerate(numbers) if found != numbers[0]]:
        raise UserError(
            f"rank {', '.join(map(str, others))} would train something else than rank 0: other params, data, code or "
            "packages. Give every machine the same checkout, params.yaml and data"
        )


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, as many of each, in the order of the ranks; no gradient goes through."""
    if num_ranks() == 1:
        return rows
    all_rows = rows.new_empty((num_ranks() * len(rows), *rows.shape[1:]))
    dist.all_gather_into_tensor(all_rows, rows.contiguous())
    return all_rows


def scattered(all_rows: Tensor) -> Tensor:
    """The sum over the ranks, of which each gets its own rows: the way back from `gathered`."""
    if num_ranks() == 1:
        return all_rows
    rows = all_rows.new_empty((len(all_rows) // num_ranks(), *all_rows.shape[1:]))
    dist.reduce_scatter_tensor(rows, all_rows)
    return rows


def summed(value: Tensor) -> Tensor:
    """The sum over the ranks, in place."""
    if num_ranks() > 1:
        dist.all_reduce(value)
    return value


def log_summed(value: Tensor) -> Tensor:
    """The logarithm of the sum over the ranks of exp(value)."""
    if num_ranks() == 1:
        return value
    most = value.clone()
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return summed((value - most).exp()).log() + most


def from_rank_0(value: Tensor) -> None:
    """Fills `value` with that of rank 0."""
    if num_ranks() > 1:
        dist.broadcast(value, 0)


@torch.no_grad()
def fill(value: Tensor, everything: Tensor | None) -> None:
    """Copies `everything`, which rank 0 alone has to have, to `value`, of which a rank may have a share."""
    everything = torch.empty(value.shape, dtype=value.dtype) if everything is None else everything
    everything = everything.to(value.device)
    from_rank_0(everything)
    if isinstance(value, DTensor):
        everything = distribute_tensor(everything, value.device_mesh, value.placements, src_data_rank=None)
    value.copy_(everything)


def whole(value: Tensor) -> Tensor:
    """All of `value`, also where ranks have shares; then all of them have to ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def spread(model: CLIP, is_sharded: bool) -> None:
    """Has the gradients of what trains averaged over the ranks while the backward pass goes on.

    Each rank keeps all weights (torch's `replicate`), or a share of weights, gradients and moments (`fully_shard`).
    Nothing is wrapped: names stay. What belongs to no part: see `average_others`.
    """
    if num_ranks() == 1:
        return
    _share_statistics(model)
    for part in _parts(model):
        if is_sharded:
            from torch.distributed.fsdp import fully_shard

            # of features that nothing changes in place
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            part.to(memory_format=torch.contiguous_format)  # as it demands
            for layer in layers_of(part):
                fully_shard(layer)
            fully_shard(part)
        else:
            from torch.distributed._composable import replicate

            replicate(part, gradient_as_bucket_view=True)
            replicate.state(part).lazy_init()  # now: its first use may be a validation, in inference mode


def average_next(model: CLIP, is_due: bool) -> None:
    """Whether the next backward pass ends with averaged gradients, or goes on adding to this rank's own."""
    if num_ranks() > 1:
        for part in _parts(model):
            part.set_requires_gradient_sync(is_due)  # ty: ignore[not-callable]


def average_others(model: CLIP) -> None:
    """Averages the gradients of the parameters that stand outside the towers."""
    projection = model.teacher_projection
    for parameter in (model.logit_scale, model.logit_bias, None if projection is None else projection.weight):
        if parameter is not None and parameter.grad is not None:
            summed(parameter.grad).div_(num_ranks())


def check_ranks(name: str, params: Training, on: Train) -> None:
    """Raises UserError where the training `name` can not be shared out among the ranks that there are."""
    if params.global_batch % num_ranks():
        fits = params.global_batch // num_ranks() * num_ranks()
        raise UserError(
            f"{name}.global_batch is {params.global_batch}, which {num_ranks()} devices can not share out evenly: "
            f"{fits} or {fits + num_ranks()} would do, or another `train.devices`"
        )
    if on.sharded and getattr(params, "lora", None):
        raise UserError("train.sharded does not go with stage2.lora, which needs no less memory by it: set it to false")


def gathered_model(model: CLIP) -> CLIP:
    """`model` on the CPU of rank 0, whole where ranks have shares of it, but for what a training alone has.

    The others get theirs back.
    """
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    state = {
        name: whole(tensor).cpu()
        for name, tensor in model.state_dict().items()
        if not name.startswith("teacher_projection.")
    }
    if rank():
        return model
    gathered = CLIP(model.architecture)
    gathered.load_state_dict(state)
    return gathered


def _parts(model: CLIP) -> list[nn.Module]:
    parts = (model.image_tower, model.image_projection, model.text_tower, model.text_projection)
    return [part for part in parts if any(parameter.requires_grad for parameter in part.parameters())]


def _share_statistics(model: CLIP) -> None:
    """Means and variances of batch normalisation over all ranks, as in one large batch."""
    tower = model.image_tower
    if not any(isinstance(m, _BatchNorm) and m.weight.requires_grad for m in tower.modules()):
        return
    if pick_device("auto").type == "cpu":
        raise UserError(
            f"the image tower {model.architecture.image_tower.name} normalises over the batch, and on CPUs torch can "
            "not do that over several ranks: set `train.devices` to 1"
        )
    from timm.layers import convert_sync_batchnorm

    model.image_tower = convert_sync_batchnorm(tower)


def _from_environment(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise UserError(f"{name} is {value!r}, not a number: start the ranks with torchrun, which sets it")
    return int(value)

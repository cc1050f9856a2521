"""Several processes, one a device, that train one model: what they tell each other. Alone, each answer is at hand."""

import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """The number of this process, from 0; process 0 writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


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
    """The sum over the ranks."""
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

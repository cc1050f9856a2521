"""Checkpoints: `{step, model, optimizer}` after a step, the last two of them, each with its checksum.

Of the model only what trains: the rest is in the weights that the training started from.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from clip_core.errors import UserError
from clip_core.files import replacing_file
from clip_core.model.weights import write_tensors

KEPT = 2


def save(work: Path, step: int, num_steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes the state after `step` of `num_steps` beside the one before; older ones go.

    Raises UserError, and writes nothing, when a number in it is not finite.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _state(model, optimizer)}
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise UserError(
            f"after step {step} these are not finite: {', '.join(broken[:5])}{', ...' if broken[5:] else ''}; nothing "
            "is saved. Lower `schedule.peak_lr` or lengthen `warmup_steps`"
        )
    with replacing_file(work / f"checkpoint-{step:08}.safetensors") as aside:
        progress = f"{step} of {num_steps}"
        write_tensors(state, aside, {"progress": progress, "sha256": _checksum(progress, sorted(state.items()))})
    for old in checkpoints_in(work)[:-KEPT]:
        old.unlink()


@torch.no_grad()
def resume(work: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Fills model and optimizer from the last whole checkpoint in `work`; the number of steps done, 0 without one."""
    for file in reversed(checkpoints_in(work)):
        if not _is_whole(file):
            print(f"{file}: torn or damaged: passed over for the one before", flush=True)
            continue
        with safe_open(file, framework="pt") as opened:
            saved = set(opened.keys())
            for name, parameter in model.named_parameters():
                if f"optimizer.{name}.exp_avg" in saved:
                    moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                    optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
            state = dict(_state(model, optimizer))
            assert set(state) == saved  # the folder's name promises it
            for name, tensor in state.items():
                tensor.copy_(opened.get_tensor(name))
            return step_of(file)
    return 0


def checkpoints_in(work: Path) -> list[Path]:
    """The checkpoints in the folder, the last one last."""
    return sorted(work.glob("checkpoint-*.safetensors"))


def step_of(checkpoint: Path) -> int:
    """The number of steps done, as the file's name has it."""
    return int(checkpoint.stem.partition("-")[2])


def progress_in(checkpoint: Path) -> str:
    """`40 of 600`, which steps are done; `?` when the file does not say."""
    try:
        with safe_open(checkpoint, framework="pt") as opened:
            return (opened.metadata() or {}).get("progress", "?")
    except SafetensorError:
        return "?"


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    yield from ((f"model.{name}", tensor) for name, tensor in model.state_dict().items() if name not in frozen)
    for name, parameter in model.named_parameters():
        yield from ((f"optimizer.{name}.{key}", value) for key, value in optimizer.state.get(parameter, {}).items())


def _is_whole(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            facts = opened.metadata() or {}
            tensors = ((name, opened.get_tensor(name)) for name in sorted(opened.keys()))
            return facts.get("sha256") == _checksum(facts.get("progress", ""), tensors)
    except SafetensorError:
        return False


def _checksum(progress: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256(progress.encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

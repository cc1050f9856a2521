"""Checkpoints: model, optimizer and average after a step, the last two of them, each with its checksum.

Of the model only what trains: the rest is in the weights that the training started from. They hold whole tensors, on
however many ranks the training runs, and are written by rank 0 while the training goes on.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clip_core.errors import UserError
from clip_core.files import replacing_file
from clip_core.train.average import Average
from clip_core.train.distributed import fill, from_rank_0, num_ranks, rank, whole
from clip_core.train.watch import trained

KEPT = 2


class Saver:
    """Writes checkpoints to `work`: `save(step)` takes a copy of the state, a thread writes it."""

    def __init__(
        self, work: Path, num_steps: int, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average
    ) -> None:
        self._work, self._num_steps, self._of = work, num_steps, (model, optimizer, average)
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __call__(self, step: int) -> None:
        """Saves the state after `step`; raises UserError when the one before held a number that is not finite."""
        state = {
            name: whole(tensor).detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in _state(*self._of)
        }
        if rank() == 0:
            self._wait()
            self._writing = self._thread.submit(_write, self._work, step, self._num_steps, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._thread:
            if kind is None or kind is SystemExit:
                self._wait()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing:
            writing.result()


def _write(work: Path, step: int, num_steps: int, state: dict[str, Tensor]) -> None:
    """Writes the state beside the one before; older ones go. A full disk is told and no more: that one stays."""
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise UserError(
            f"after step {step} these are not finite: {', '.join(broken[:5])}{', ...' if broken[5:] else ''}; nothing "
            "is saved. Lower `schedule.peak_lr` or lengthen `warmup_steps`"
        )
    progress = f"{step} of {num_steps}"
    facts = {"progress": progress, "ranks": str(num_ranks()), "sha256": _checksum(progress, sorted(state.items()))}
    try:
        with replacing_file(work / f"checkpoint-{step:08}.safetensors") as aside:
            save_file(state, aside, facts)
    except (OSError, UserError) as error:
        print(
            f"warning: no checkpoint after step {step}: {error}; the training goes on, the one before stays", flush=True
        )
        return
    for old in checkpoints_in(work)[:-KEPT]:
        old.unlink()


@torch.no_grad()
def resume(work: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> int:
    """Fills all three from the last whole checkpoint in rank 0's `work`; the steps done, 0 without one."""
    file = _last_whole(work) if rank() == 0 else None
    done = torch.tensor(step_of(file) if file else 0)
    from_rank_0(done)
    if not done:
        return 0
    opened = safe_open(file, framework="pt") if file else None
    saved = set(opened.keys()) if opened is not None else set()
    for name, parameter in model.named_parameters():
        has_moments = f"optimizer.{name}.exp_avg" in saved if opened is not None else parameter.requires_grad
        if has_moments:
            moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
    state = dict(_state(model, optimizer, average))
    if opened is not None:
        assert set(state) == saved  # the folder's name promises it
        _tell_other_ranks(opened.metadata() or {})
    for name, tensor in state.items():
        fill(tensor, None if opened is None else opened.get_tensor(name))
    return int(done)


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


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> Iterator[tuple[str, Tensor]]:
    yield from ((f"model.{name}", tensor) for name, tensor in trained(model))
    for name, parameter in model.named_parameters():
        yield from ((f"optimizer.{name}.{key}", value) for key, value in optimizer.state.get(parameter, {}).items())
    yield from average.state()


def _last_whole(work: Path) -> Path | None:
    for file in reversed(checkpoints_in(work)):
        if _is_whole(file):
            return file
        print(f"{file}: torn or damaged: passed over for the one before", flush=True)
    return None


def _tell_other_ranks(facts: dict[str, str]) -> None:
    if (ranks := facts.get("ranks", "1")) != str(num_ranks()):
        print(
            f"warning: saved on {ranks} ranks, going on with {num_ranks()}: the order of samples is the same, the last "
            "bits of the weights are not",
            flush=True,
        )


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

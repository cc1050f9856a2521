"""Interrupted trainings go on: `{step, model, optimizer}` in a locked folder named after what decides the result.

Of the model only what trains: the rest is in the weights that the training started from.
"""

import fcntl
import hashlib
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from clip_core.errors import UserError
from clip_core.files import atomic_write
from clip_core.model.contract import hash_of

CHECKPOINT = "checkpoint.safetensors"  # its metadata holds the step
WAIT = 600  # seconds for another trainer to finish
UNKNOWN = "unknown"


def fingerprint(*parts: object) -> str:
    """Names a training by its params and inputs (`parts`) and by the source of the code that is loaded.

    With other code, other params or other data the name is another, and nothing is resumed.
    """
    sources = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(_sources())]
    return hash_of(*parts, torch.__version__, sources)


@contextmanager
def work_folder(stage: str, name: str, root: Path = Path(".work")) -> Generator[Path]:
    """The folder for a training's state, ours alone while the block runs, removed when it ends well.

    Then the stage's older folders go, too: of other params, data or code, and interrupted, unless they are at work.
    """
    folder = root / stage / name
    with _locked(folder):
        yield folder
        shutil.rmtree(folder)
    for lock in list(folder.parent.glob("*/lock")):
        with suppress(FileNotFoundError), lock.open("a+") as file:
            if _takes_lock(file) and _is_same_file(lock, file.fileno()):
                shutil.rmtree(lock.parent)


def save(work: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes the state after `step` in place of the one before."""
    state = dict(_state(model, optimizer))
    atomic_write(work / CHECKPOINT, to_bytes({name: t.contiguous() for name, t in state.items()}, {"step": str(step)}))


@torch.no_grad()
def resume(work: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Fills model and optimizer from the checkpoint in `work`; the number of steps done, 0 without a checkpoint."""
    if not (work / CHECKPOINT).exists():
        return 0
    with safe_open(work / CHECKPOINT, framework="pt") as file:
        saved = set(file.keys())
        for name, parameter in model.named_parameters():
            if f"optimizer.{name}.exp_avg" in saved:
                moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
        state = dict(_state(model, optimizer))
        assert set(state) == saved  # the folder's name promises it
        for name, tensor in state.items():
            tensor.copy_(file.get_tensor(name))
        return int(file.metadata()["step"])


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    yield from ((f"model.{name}", tensor) for name, tensor in model.state_dict().items() if name not in frozen)
    for name, parameter in model.named_parameters():
        yield from ((f"optimizer.{name}.{key}", value) for key, value in optimizer.state.get(parameter, {}).items())


def _sources() -> Iterator[Path]:
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("clip_core", "stages") and getattr(module, "__file__", None):
            yield Path(str(module.__file__))


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Holds the folder's lock; waits for its holder to end, and ends it if it is an orphan."""
    deadline, told = time.monotonic() + WAIT, -math.inf
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = (folder / "lock").open("a+")
        except FileNotFoundError:  # removed meanwhile by a training that has ended
            continue
        with lock as file:
            if _takes_lock(file):
                if _is_same_file(folder / "lock", file.fileno()):
                    file.truncate(0)
                    file.write(" ".join(f"{process} {_start_of(process)}" for process in (os.getpid(), os.getppid())))
                    file.flush()
                    yield
                    return
                continue  # the holder finished and removed the folder: take the new one
            file.seek(0)
            words = file.read().split() or ["0", UNKNOWN, "0", UNKNOWN]  # about to be written
        holder, parent = int(words[0]), int(words[2])
        now = time.monotonic()
        # The parent's number alone says little: dvc may be process 1 itself, and orphans go to others than process 1.
        if UNKNOWN != words[1] == _start_of(holder) and words[3] != _start_of(parent):
            print(f"process {holder} trains this and nobody waits for it: ending it, going on", flush=True)
            with suppress(ProcessLookupError):
                os.kill(holder, signal.SIGTERM)
        if now > deadline:
            raise UserError(f"{folder}: process {holder} still trains this: end it (kill {holder}) and run again")
        if now - told > 10:
            told = now
            print(f"process {holder} is training this: waiting for it (kill {holder} ends it)", flush=True)
        time.sleep(0.5)


def _takes_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start_of(process: int) -> str:
    """When a living process started, in the kernel's ticks (Linux; elsewhere unknown, and nothing is an orphan)."""
    try:
        status = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return UNKNOWN
    return UNKNOWN if status[0] in "ZX" else status[19]  # zombies have ended


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False

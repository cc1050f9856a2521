"""What a training tells: curves as CSV, which an interrupted run continues, and a line every few seconds."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from clip_core.data.batches import Batch
from clip_core.errors import UserError
from clip_core.files import atomic_write
from clip_core.model.clip import CLIP
from clip_core.train.distributed import rank
from clip_core.train.mfu import NeededFlops, peak_of_this_device

LINE_EVERY = 3.0  # seconds
NO_STEPS = "step,loss\n"  # the curve of no training


class CsvLog:
    """One curve: a row `step,...` at a time, continued after row `last_step` (later rows are cut off)."""

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split(",")[0]) <= last_step]
        atomic_write(path, "".join(lines[:1] + kept) if kept else "")

    def __call__(self, step: int, **values: float) -> None:
        """Appends a row; the first one writes the header."""
        with self._path.open("a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(",".join(["step", *values]) + "\n")
            file.write(",".join([str(step), *(f"{value:.8g}" for value in values.values())]) + "\n")
            file.flush()
            os.fsync(file.fileno())  # no checkpoint may be newer than the rows before it


class TensorBoardLog:
    """The same rows for TensorBoard (the extra `tensorboard`); those after `last_step` are hidden."""

    def __init__(self, folder: Path, last_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "train.tensorboard is true, but the package tensorboard is not installed: "
                "`.venv/bin/uv pip install tensorboard`, or set it to false"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1)

    def __call__(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def curve(path: Path, last_step: int, is_for_tensorboard: bool) -> Callable[..., None]:
    """What takes the rows of the curve at `path`: rank 0 writes them, the others do not.

    TensorBoard's lie in `.work/tensorboard/<stage>/<training>/<curve>`, as a training's own folder goes when it ends.
    """
    logs: list[Callable[..., None]] = [] if rank() else [CsvLog(path, last_step)]
    if logs and is_for_tensorboard:
        training = path.parent
        folder = training.parents[1] / "tensorboard" / training.parent.name / training.name / path.stem
        logs.append(TensorBoardLog(folder, last_step))

    def write(step: int, **values: float) -> None:
        for log in logs:
            log(step, **values)

    return write


def publish_curves(work: Path, curves: Path) -> None:
    """Copies the finished training's curves to the folder `curves`."""
    for path in sorted(work.glob("*.csv")):
        # A training without validation has an empty one; DVC waits for train.csv, also when no step was asked for.
        if path.stat().st_size or path.name == "train.csv":
            atomic_write(curves / path.name, path.read_text(encoding="utf-8") or NO_STEPS)


class Progress:
    """The training's lines on the screen, with speed, MFU where the device's peak is known, and time left."""

    def __init__(self, title: str, done: int, num_steps: int, batch: int, model: CLIP) -> None:
        self._title, self._num_steps, self._batch = title, num_steps, batch
        self._peak, self._flops = peak_of_this_device(), 0.0  # since the last line
        self._flops_of = NeededFlops(model) if self._peak else None
        self._first = self._told = time.monotonic()
        self._done = self._done_first = done
        self._waited = 0.0  # seconds since the last line

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Around what waits for the step's pairs."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def __call__(self, step: int, batch: Batch, loss: float, lr: float, is_due: bool) -> None:
        """A line for the first step, for a step that is due, and when there was none for a while."""
        now = time.monotonic()
        if self._flops_of:
            self._flops += self._flops_of(batch)
        if not (is_due or step == self._done_first + 1 or now - self._told >= LINE_EVERY):
            return
        per_step = (now - self._first) / (step - self._done_first)
        speed = self._batch * (step - self._done) / max(now - self._told, 1e-9)
        share = self._waited / max(now - self._told, 1e-9)
        minutes, seconds = divmod(round(per_step * (self._num_steps - step)), 60)
        mfu = f"{self._flops / (now - self._told) / self._peak:.0%} MFU, " if self._peak else ""
        self._told, self._done, self._waited, self._flops = now, step, 0.0, 0.0
        print(
            f"{self._title}  step {step:>{len(str(self._num_steps))}}/{self._num_steps}  loss {loss:.4f}  lr {lr:.2e}  "
            f"{speed:,.0f} samples/s ({mfu}{share:.0%} of the time waiting for them)  {minutes}:{seconds:02d} left",
            flush=True,
        )

"""What validation says on a training's way, from the start on: the best weights, a stall, a fall below the start."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip_core.config.training import Best
from clip_core.files import replacing_file
from clip_core.model.clip import CLIP
from clip_core.model.precision import pick_device
from clip_core.train.distributed import fill, from_rank_0, gathered_model, rank, whole
from clip_core.train.log import curve

RECALL = "text_to_image_mean_recall"  # over all of the split's pictures, never over a batch
BEST = "best.safetensors"


@dataclass(frozen=True)
class Validation:
    """What is measured every so many steps, at the start and at the last."""

    every: int
    measure: Callable[[CLIP], dict[str, float]]


class Watch:
    """Measures, tells, and keeps the best weights in `work` where `keep` asks for them."""

    def __init__(
        self,
        validation: Validation | None,
        keep: Best | None,
        work: Path,
        done: int,
        num_steps: int,
        is_for_tensorboard: bool,
    ) -> None:
        self._validation, self._keep, self._num_steps = validation, keep, num_steps
        self._every = keep.every if keep else validation.every if validation else 0
        self._file = work / BEST
        self._log = curve(work / "validation.csv", done, is_for_tensorboard)
        recalls = _recalls_in(work / "validation.csv", done) if rank() == 0 else {}
        self._recalls = _as_on_rank_0(recalls)  # step -> recall, of the start (0) and since
        self._has_warned = False

    def __call__(self, step: int, model: CLIP) -> bool:
        """Measures where it is due after `step`; whether the training may end here, since its recall has stalled."""
        if step == 0 and self._recalls:  # goes on with a training that may have ended before it was published
            return self._has_stalled()
        if not self.is_due(step):
            return False
        assert self._validation
        whole_model, recall = gathered_model(model), torch.zeros((), dtype=torch.float64)
        if rank() == 0:
            measured = self._validation.measure(whole_model.to(pick_device("auto")).eval())
            print(f"validation at step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in measured.items()))
            self._log(step, **measured)
            recall.fill_(measured[RECALL])
        from_rank_0(recall)
        self._recalls[step] = recall.item()
        self._warn(step)
        if self._keep and step == self.best:
            state = {name: whole(tensor).detach().cpu().contiguous() for name, tensor in trained(model)}
            if rank() == 0:
                with replacing_file(self._file) as aside:
                    save_file(state, aside)
        return self._has_stalled()

    def is_due(self, step: int) -> bool:
        """Whether it measures after `step`."""
        return self._validation is not None and (step in (0, self._num_steps) or step % self._every == 0)

    @property
    def best(self) -> int:
        """The first step with the highest recall; 0 is the start."""
        return max(self._recalls, key=lambda step: (self._recalls[step], -step))

    def take_best(self, model: CLIP) -> None:
        """Gives `model` the best weights."""
        if not self._keep or self.best == max(self._recalls):
            return
        best = load_file(self._file) if rank() == 0 else {}
        for name, tensor in trained(model):
            fill(tensor, best.get(name))
        print(f"kept: the weights after step {self.best}, with a recall of {self._recalls[self.best]:.4f}", flush=True)

    def _warn(self, step: int) -> None:
        start = self._recalls[0]
        if step and self._recalls[step] < start and not self._has_warned:
            self._has_warned = True
            print(
                f"warning: recall {self._recalls[step]:.4f} is below the start's {start:.4f}: learning rate too high "
                "for the batch? (`keep: {every: ..., patience: ...}` ends such a training and keeps the best weights)",
                flush=True,
            )

    def _has_stalled(self) -> bool:
        """Whether the last `patience` measurements have brought nothing better."""
        if not self._keep or self._keep.patience is None:
            return False
        since = sum(step > self.best for step in self._recalls)
        if since < self._keep.patience:
            return False
        print(f"recall has not risen since step {self.best}, {since} measurements ago: the training ends", flush=True)
        return True


def trained(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What a training changes: parameters that train, and buffers that are saved."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return [(name, tensor) for name, tensor in model.state_dict().items() if name not in frozen]


def _as_on_rank_0(recalls: dict[int, float]) -> dict[int, float]:
    """They decide what all ranks do together."""
    num = torch.tensor(len(recalls))
    from_rank_0(num)
    rows = torch.zeros(int(num), 2, dtype=torch.float64)
    if recalls:
        rows[:] = torch.tensor(list(recalls.items()), dtype=torch.float64)
    from_rank_0(rows)
    return {int(step): recall for step, recall in rows.tolist()}


def _recalls_in(file: Path, done: int) -> dict[int, float]:
    if not file.exists():
        return {}
    with file.open(encoding="utf-8", newline="") as opened:
        rows = csv.DictReader(opened)
        return {int(row["step"]): float(row[RECALL]) for row in rows if int(row["step"]) <= done}

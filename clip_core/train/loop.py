"""The training loop: one screen, the same for the warm start, stage 1 and stage 2."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from clip_core.config.intervals import Interval
from clip_core.data.batches import TrainingBatches
from clip_core.data.rows import count_rows
from clip_core.data.sampler import random_at
from clip_core.data.store import Store
from clip_core.errors import UserError
from clip_core.files import atomic_write
from clip_core.model.clip import CLIP
from clip_core.model.precision import pick_device
from clip_core.train.activations import checkpoint_activations
from clip_core.train.backward import Encode, backward
from clip_core.train.log import CsvLog, Progress
from clip_core.train.optimizer import make_optimizer, set_lr
from clip_core.train.schedule import lr_at, num_steps_of, warmup_of
from clip_core.train.state import resume, save


@dataclass(frozen=True)
class Validation:
    """What is measured every so many steps, and at the last."""

    every: int
    measure: Callable[[CLIP], dict[str, float]]


def train(
    batches: TrainingBatches,
    model: CLIP,
    encode_images: Encode,
    work: Path,
    interval: Interval,
    validation: Validation | None = None,
) -> None:
    """Trains to the last step, continuing by itself from a checkpoint in `work`; the curves stay in `work`."""
    torch.use_deterministic_algorithms(True)
    params = batches.params
    num_steps = num_steps_of(params.schedule, batches.num_rows, params.global_batch)
    if (warmup := warmup_of(params.schedule, num_steps)) < (asked := params.schedule.warmup_steps):
        print(f"{num_steps} steps are few for a warm-up of {asked}: it takes {warmup}", flush=True)
    model.to(pick_device("auto")).image_tower.to(memory_format=torch.channels_last)  # faster convolutions
    if params.checkpoint_activations:
        checkpoint_activations(model)
    optimizer = make_optimizer(model, params.optimizer)
    done = resume(work, model, optimizer)  # 0 when there is nothing to resume
    if done:
        print(f"resuming at step {done + 1} of {num_steps}", flush=True)
    train_log, validation_log = CsvLog(work / "train.csv", done), CsvLog(work / "validation.csv", done)
    progress = Progress(work.parent.name, done, num_steps, params.global_batch)
    if num_steps == 0 and validation:
        validation_log(0, **_printed(0, validation.measure(model.eval())))
    for step in range(done + 1, num_steps + 1):
        model.train()
        set_lr(optimizer, lr := lr_at(step, params.schedule, num_steps))
        seed = int(random_at(batches.seed, "dropout", step).integers(2**63))
        with progress.waiting():
            batch = batches.batch(step)
        measured = backward(params, model, encode_images, batch, seed)
        norm = clip_grad_norm_(model.parameters(), params.optimizer.max_grad_norm or math.inf)
        loss, grad_norm = _finite(measured, norm, step, lr, batches, work)  # before the optimizer moves
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.clamp_logit_scale()
        progress(step, loss, lr, _is_due(step, interval.log_every, num_steps))
        if _is_due(step, interval.log_every, num_steps):
            train_log(step, loss=loss, lr=lr, grad_norm=grad_norm, logit_scale=model.logit_scale.exp().item())
        if validation and _is_due(step, validation.every, num_steps):
            validation_log(step, **_printed(step, validation.measure(model.eval())))
        if _is_due(step, interval.save_every, num_steps):
            save(work, step, num_steps, model, optimizer)
    model.eval()


def check_batch(name: str, global_batch: int, language: str, store: Store) -> None:
    """Raises UserError where the batch of the training `name` is larger than its rows are many."""
    num_rows = sum(count_rows(store, language))
    if global_batch > num_rows:
        raise UserError(
            f"{name}.global_batch is {global_batch:,}, but only {num_rows:,} training pairs (or pictures with "
            f"names) are in language {language!r}: lower it, and {name}.schedule.peak_lr with it. Behind a finetuning "
            "recipe the recipe `small-batch` does both: a batch of 48"
        )


def _is_due(step: int, every: int, num_steps: int) -> bool:
    return step % every == 0 or step == num_steps


def _finite(
    loss: Tensor, grad_norm: Tensor, step: int, lr: float, batches: TrainingBatches, work: Path
) -> tuple[float, float]:
    """Both as numbers, at the price of one synchronisation; raises UserError unless both are finite."""
    numbers = torch.stack([loss.float(), grad_norm.float()]).tolist()
    if not all(map(math.isfinite, numbers)):
        pairs, file = batches.named(step), work / f"not-finite-at-step-{step}.txt"
        atomic_write(file, "\n".join(pairs) + "\n")
        raise UserError(
            f"at step {step}, with learning rate {lr:.3g}, the loss is {numbers[0]} and the gradient's norm "
            f"{numbers[1]}; nothing of this step is kept. Lower `schedule.peak_lr` or lengthen `warmup_steps`, or look "
            f"at the pairs of the batch: {'; '.join(pairs[:4])}; all {len(pairs)} stand in {file}"
        )
    return numbers[0], numbers[1]


def _printed(step: int, metrics: dict[str, float]) -> dict[str, float]:
    print(f"validation at step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return metrics

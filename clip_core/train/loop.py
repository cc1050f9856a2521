"""The training loop: one screen, the same for the warm start, stage 1 and stage 2."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.utils import clip_grad_norm_

from clip_core.config import Training
from clip_core.data.batches import Pairs
from clip_core.data.sampler import random_at
from clip_core.errors import UserError
from clip_core.model.clip import CLIP
from clip_core.model.precision import pick_device
from clip_core.train.activations import checkpoint_activations
from clip_core.train.backward import Encode, backward
from clip_core.train.checkpoint import resume, save
from clip_core.train.log import CsvLog, Progress
from clip_core.train.optimizer import lr_at, make_optimizer, set_lr

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Validation:
    """What is measured every so many steps, and at the last."""

    every: int
    measure: Callable[[CLIP], dict[str, float]]


def train(
    params: Training,
    model: CLIP,
    pairs: Pairs,
    work: Path,
    encode_images: Encode,
    validation: Validation | None = None,
) -> None:
    """Trains to the last step, continuing by itself from a checkpoint in `work`; the curves stay in `work`."""
    torch.use_deterministic_algorithms(True)
    num_steps = params.schedule.steps(pairs.num_pairs, params.global_batch)
    if (warmup := params.schedule.warmup(num_steps)) < (asked := params.schedule.warmup_steps):
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
        validation_log(0, **_told(0, validation.measure(model.eval())))
    for step in range(done + 1, num_steps + 1):
        model.train()
        set_lr(optimizer, lr := lr_at(step, params.schedule, num_steps))
        seed = int(random_at(pairs.seed, "dropout", step).integers(2**63))
        loss = backward(params, model, encode_images, pairs.batch(step), seed)
        _stop_unless_finite(loss, step)
        grad_norm = clip_grad_norm_(model.parameters(), params.optimizer.max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.clamp_logit_scale()
        progress(step, loss, lr, _is_due(step, params.log_every, num_steps))
        if _is_due(step, params.log_every, num_steps):
            scale = model.logit_scale.exp().item()
            train_log(step, loss=loss, lr=lr, grad_norm=grad_norm.item(), logit_scale=scale)
        if validation and _is_due(step, validation.every, num_steps):
            validation_log(step, **_told(step, validation.measure(model.eval())))
        if _is_due(step, params.save_every, num_steps):
            save(work, step, model, optimizer)
    model.eval()


def check_batches(trainings: dict[str, Training], pairs: "pd.DataFrame") -> None:
    """Raises UserError where a training's batch is larger than its pictures are many; before any long work."""
    for name, params in trainings.items():
        language, batch = params.captions.language, params.global_batch
        num_pictures = pairs.loc[pairs["language"] == language, "image_id"].nunique()
        if params.schedule.num_steps != 0 and batch > num_pictures:
            raise UserError(
                f"{name}.global_batch is {batch:,}, but only {num_pictures:,} training pictures have captions in "
                f"language {language!r}: lower it, and {name}.schedule.peak_lr with it. Behind a finetuning recipe "
                "the recipe `small-batch` does both: a batch of 48"
            )


def _is_due(step: int, every: int, num_steps: int) -> bool:
    return step % every == 0 or step == num_steps


def _stop_unless_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss} at step {step}: lower `schedule.peak_lr` or lengthen `warmup_steps`")


def _told(step: int, metrics: dict[str, float]) -> dict[str, float]:
    print(f"validation at step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return metrics

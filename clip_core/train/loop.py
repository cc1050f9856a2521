"""The training loop: one screen, the same for the warm start, stage 1 and stage 2, on one device or many."""

import math
from pathlib import Path

import torch
from torch import Tensor

from clip_core.config.intervals import Interval
from clip_core.config.train import ONE_DEVICE, Train
from clip_core.data.batches import TrainingBatches
from clip_core.data.rows import count_rows
from clip_core.data.sampler import random_at
from clip_core.data.store import Store
from clip_core.errors import UserError
from clip_core.files import atomic_write
from clip_core.model.clip import CLIP
from clip_core.model.precision import pick_device
from clip_core.train.activations import checkpoint_activations
from clip_core.train.average import Average
from clip_core.train.backward import Encode, backward, compute_as
from clip_core.train.distributed import from_rank_0, rank, spread, summed
from clip_core.train.interruption import Interruption
from clip_core.train.log import Progress, curve
from clip_core.train.optimizer import clip_gradients, make_optimizer, set_lr
from clip_core.train.schedule import lr_at, num_steps_of, warmup_of
from clip_core.train.state import Saver, resume
from clip_core.train.teacher import Teacher
from clip_core.train.watch import Validation, Watch


def train(
    batches: TrainingBatches,
    model: CLIP,
    encode_images: Encode,
    work: Path,
    interval: Interval,
    validation: Validation | None = None,
    on: Train = ONE_DEVICE,
    teacher: Teacher | None = None,
) -> None:
    """Trains to the last step, continuing by itself from a checkpoint in `work`; the curves stay in `work`.

    Raises SystemExit with a checkpoint written when a signal asks for an end.
    """
    params = batches.params
    compute_as(params)
    num_steps = num_steps_of(params.schedule, batches.num_rows, params.global_batch)
    if (warmup := warmup_of(params.schedule, num_steps)) < (asked := params.schedule.warmup_steps):
        print(f"{num_steps} steps are few for a warm-up of {asked}: it takes {warmup}", flush=True)
    model.to(pick_device("auto")).image_tower.to(memory_format=torch.channels_last)  # faster convolutions
    if params.checkpoint_activations:
        checkpoint_activations(model)
    spread(model, on.sharded)
    if params.torch.compile:
        compile_towers(model)
    optimizer, average = make_optimizer(model, params.optimizer), Average(model, params.ema_decay)
    done = resume(work, model, optimizer, average)  # 0 when there is nothing to resume
    if done:
        print(f"resuming at step {done + 1} of {num_steps}", flush=True)
    progress = Progress(work.parent.name, done, num_steps, params.global_batch, model)
    log = curve(work / "train.csv", done, on.tensorboard)
    watch = Watch(validation, None if params.keep == "last" else params.keep, work, done, num_steps, on.tensorboard)
    has_stalled = watch(0, model)  # where the training starts from
    with Saver(work, num_steps, model, optimizer, average) as save, Interruption() as interruption:
        for step in range(done + 1, num_steps + 1 if not has_stalled else 0):
            model.train()
            set_lr(optimizer, lr := lr_at(step, params.schedule, num_steps))
            with progress.waiting():
                batch = batches.batch(step)
            seed = int(random_at(batches.seed, "dropout", step, rank()).integers(2**63))
            lesson = teacher.lesson(model, batch) if teacher else None
            measured = backward(params, model, encode_images, batch, seed, lesson)
            norm = clip_gradients(model, params.optimizer.max_grad_norm)
            loss, grad_norm, is_interrupted = _told(measured, norm, interruption)
            if math.isfinite(loss) and math.isfinite(grad_norm):  # before the optimizer moves
                optimizer.step()
                model.clamp_logit_scale()
                average.update(step)
            else:
                _skip(step, lr, loss, grad_norm, batches, work)
            optimizer.zero_grad(set_to_none=True)
            progress(step, batch, loss, lr, _is_due(step, interval.log_every, num_steps))
            if _is_due(step, interval.log_every, num_steps):
                factor = model.logit_scale.exp().item()
                log(step, loss=loss, lr=lr, grad_norm=grad_norm, logit_scale=factor, kin=batch.share_of_kin)
            if watch.is_due(step):  # exchanging all weights is work
                with average.in_place():
                    has_stalled = watch(step, model)
            if is_interrupted or has_stalled or _is_due(step, interval.save_every, num_steps):
                save(step)
            if is_interrupted and step < num_steps:
                interruption.end(step, num_steps)
            if has_stalled:
                break
    average.swap()
    watch.take_best(model.eval())


def check_batch(name: str, global_batch: int, language: str, store: Store) -> None:
    """Raises UserError where the batch of the training `name` is larger than its rows are many."""
    num_rows = sum(count_rows(store, language))
    if global_batch > num_rows:
        raise UserError(
            f"{name}.global_batch is {global_batch:,}, but only {num_rows:,} training pairs (or pictures with "
            f"names) are in language {language!r}: lower it, and {name}.schedule.peak_lr with it. Behind a finetuning "
            "recipe the recipe `small-batch` does both: a batch of 48"
        )


def compile_towers(model: CLIP) -> None:
    """Has torch compile both towers in place: no name changes; texts may be of any length."""
    model.image_tower.compile()
    model.text_tower.compile(dynamic=True)


def _is_due(step: int, every: int, num_steps: int) -> bool:
    return step % every == 0 or step == num_steps


def _told(loss: Tensor, grad_norm: Tensor, interruption: Interruption) -> tuple[float, float, bool]:
    """Loss, length of the gradient, and whether any rank is to end: the step's one synchronisation."""
    asked = summed(torch.tensor(float(interruption.signal), device=loss.device))
    numbers = torch.stack([loss.float(), grad_norm.float(), asked]).tolist()
    return numbers[0], numbers[1], numbers[2] > 0


def _skip(step: int, lr: float, loss: float, grad_norm: float, batches: TrainingBatches, work: Path) -> None:
    """Writes down the pairs of a step that is not finite; raises UserError when there are more than may be skipped."""
    pairs, file, skipped = batches.named(step), work / f"not-finite-at-step-{step}.txt", torch.tensor(0)
    if rank() == 0:
        atomic_write(file, "\n".join(pairs) + "\n")
        skipped += sum(int(path.stem.rpartition("-")[2]) <= step for path in work.glob("not-finite-at-step-*.txt"))
    from_rank_0(skipped)
    what = f"with learning rate {lr:.3g}, the loss is {loss} and the gradient's norm {grad_norm}"
    if skipped > batches.params.max_skipped_steps:
        raise UserError(
            f"at step {step}, {what}; nothing of this step is kept. Lower `schedule.peak_lr` or lengthen "
            f"`warmup_steps`, or look at the pairs of the batch: {'; '.join(pairs[:4])}; all {len(pairs)} stand in "
            f"{file}. `max_skipped_steps` ({batches.params.max_skipped_steps}) says how many such steps may be left out"
        )
    print(f"warning: step {step} is left out: {what}; its {len(pairs)} pairs stand in {file}", flush=True)

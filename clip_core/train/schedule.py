"""How many steps a training has, and the learning rate as a function of the step."""

import math

from clip_core.config.training import Schedule

MAX_WARMUP = 0.25  # more than the paper's longest, 15 % of the steps


def num_steps_of(schedule: Schedule, num_pairs: int, global_batch: int) -> int:
    """The number of steps when there are `num_pairs` pairs; an epoch's last batch is filled up, as the paper's."""
    if schedule.num_steps is not None:
        return schedule.num_steps
    assert schedule.num_epochs is not None
    return schedule.num_epochs * -(-num_pairs // global_batch)


def warmup_of(schedule: Schedule, num_steps: int) -> int:
    """The steps of warm-up when there are `num_steps` in all; of epochs at most MAX_WARMUP of them."""
    if schedule.num_epochs is None:
        return schedule.warmup_steps
    return min(schedule.warmup_steps, int(MAX_WARMUP * num_steps))


def lr_at(step: int, schedule: Schedule, num_steps: int) -> float:
    """The learning rate of step 1, 2, ...: a linear climb to the peak, then a cosine down to 0 after `num_steps`."""
    warmup = warmup_of(schedule, num_steps)
    if step <= warmup:
        return schedule.peak_lr * step / warmup
    share = (step - 1 - warmup) / (num_steps - warmup)
    return schedule.peak_lr * (1 + math.cos(math.pi * share)) / 2

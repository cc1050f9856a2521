"""Refuses a training that does not fit the device, before anything long, and says what to write. It decides no bit."""

import math
import os
from dataclasses import replace
from pathlib import Path

from clip_core.config.train import Train
from clip_core.errors import UserError
from clip_core.memory import give_back_freed_memory, keep_freed_memory
from clip_core.model.contract import Architecture
from clip_core.train.backward import with_precision_resolved
from clip_core.train.devices import GIB, this_device
from clip_core.train.distributed import num_ranks
from clip_core.train.launch import num_processes
from clip_core.train.plan import read_stages
from clip_core.train.planned import Devices, Plan
from clip_core.train.setup import Setup
from clip_core.train.teacher import check_teacher
from clip_core.train.usual_lr import unusual_lr


def refuse_stages(params_file: Path, is_pretrained: bool) -> None:
    """`refuse_what_does_not_fit` of both stages, before `init` makes what they start from."""
    stages = read_stages(params_file)
    for name, setup in stages.setups().items():
        refuse_what_does_not_fit(name, setup, stages.architecture(), is_pretrained, stages.train)


def refuse_what_does_not_fit(
    name: str, setup: Setup, architecture: Architecture, is_pretrained: bool, train: Train
) -> None:
    """Raises UserError where the training `name` needs more memory than this device has, or a teacher that is none.

    It warns of an unusual rate.
    """
    params = with_precision_resolved(setup.params)
    if params.schedule.num_steps == 0:
        return
    if setup.teacher_folder:
        check_teacher(setup.teacher_folder)
    if is_pretrained and (warning := unusual_lr(name, params)):
        print(warning, flush=True)
    device = this_device()
    num = num_ranks() if "RANK" in os.environ else num_processes(train)
    plan = Plan(replace(setup, params=params), architecture, Devices(device, num, train.sharded))
    need = sum(plan.memory().values())
    if need > device.memory:
        raise UserError(too_large(name, plan))
    if device.is_cpu:
        keep_freed_memory() if need < device.memory / 2 else give_back_freed_memory()


def too_large(name: str, plan: Plan) -> str:
    """Why the plan does not fit, and the remedy."""
    params, device, memory = plan.setup.params, plan.devices.kind, plan.memory()
    parts = ", ".join(f"{part} {bytes_ / GIB:,.1f}" for part, bytes_ in memory.items() if bytes_ > GIB / 20)
    asked = "null" if params.micro_batch is None else params.micro_batch
    why = (
        f"{name}: a step of {plan.local_batch:,} pairs with {name}.micro_batch {asked} needs "
        f"{sum(memory.values()) / GIB:,.1f} GiB ({parts}), and {device.name} has {device.memory / GIB:,.1f} free. "
    )
    fitting = plan.that_fits()
    if fitting is None:
        return why + "No micro batch fits: take a smaller model, or adapters (stage2.lora), or a larger device"
    remedy = f"Write {name}.micro_batch: {fitting.setup.params.micro_batch}"
    if fitting.setup.params.checkpoint_activations and not params.checkpoint_activations:
        remedy += f" and {name}.checkpoint_activations: true"
    slower = fitting.seconds() / plan.seconds()
    return why + f"{remedy}: the same gradient, {slower:.1f} times the arithmetic" * math.isfinite(slower)

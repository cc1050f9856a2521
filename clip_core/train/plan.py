"""Does a training fit, and how long does it take: `python -m clip_core.train.plan` prints it for any number of devices.

It reads `params.yaml` and starts nothing; `clip_core.train.fits` refuses by the same figures.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clip_core.config.init import Init
from clip_core.config.model import Model
from clip_core.config.section import Section
from clip_core.config.stage1 import Stage1
from clip_core.config.stage2 import Stage2
from clip_core.config.train import Train
from clip_core.errors import UserError, told_to_the_user
from clip_core.model.contract import Architecture, TextArchitecture
from clip_core.model.registry import shape_of
from clip_core.model.text_tower import with_positions
from clip_core.params_file import read_yaml, validated
from clip_core.project import project_root
from clip_core.train.backward import with_precision_resolved
from clip_core.train.devices import GIB, KINDS, Device, measured, this_device
from clip_core.train.planned import Devices, Plan
from clip_core.train.schedule import num_steps_of
from clip_core.train.setup import Setup


class Stages(Section):
    """What both trainings are."""

    model: Model
    init: Init
    stage1: Stage1
    stage2: Stage2
    train: Train

    def setups(self) -> dict[str, Setup]:
        """Those of both, by their names."""
        return {"stage1": Setup.of(self.stage1, 0), "stage2": Setup.of(self.stage2, 0)}

    def architecture(self) -> Architecture:
        """The model's, with the vocabulary of the released models: that of the weights may be smaller."""
        shape = shape_of(self.model)
        options = with_positions(shape.text_tower, self.model.context_length)
        return Architecture(
            image_tower=shape.image_tower,
            text_tower=TextArchitecture(
                name=shape.text_tower.name, options=options, vocab_size=shape.family.vocabulary
            ),
            embed_dim=shape.embed_dim,
            image_size=self.model.image_size,
            context_length=self.model.context_length,
            preprocessing=shape.family.preprocessing,
            matryoshka=self.model.matryoshka,
        )


def read_stages(params_file: Path) -> Stages:
    tree = read_yaml(params_file)
    return validated(Stages, {name: tree[name] for name in Stages.model_fields}, params_file)


COLUMNS = "devices", "rows each", "GiB each", "micro_batch", "checkpoints", "s a step", "days", "device hours", "price"


def table(plans: list[Plan], pairs: int | None, price: float | None) -> str:
    """A line for each of `plans`, as written where that fits, else with the micro batch to write."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for plan in plans:
        fitting = plan.that_fits()
        if fitting is None:
            need = f"{sum(plan.memory().values()) / GIB:,.1f}"
            rows.append((f"{plan.devices.num:,}", f"{plan.local_batch:,}", need, "none fits", *[""] * 5))
            continue
        rows.append(tuple(_cells(fitting, fitting != plan, pairs, price)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _cells(plan: Plan, is_changed: bool, pairs: int | None, price: float | None) -> Iterator[str]:
    params, seconds = plan.setup.params, plan.seconds()
    yield f"{plan.devices.num:,}"
    yield f"{plan.local_batch:,}"
    yield f"{sum(plan.memory().values()) / GIB:,.1f}"
    yield f"{params.micro_batch or 'null'}" + " (write it)" * is_changed
    yield "yes" if params.checkpoint_activations else "no"
    yield f"{seconds:,.3g}"
    if params.schedule.num_steps is None and pairs is None:
        yield from ("?", "?", "?")
        return
    hours = seconds * num_steps_of(params.schedule, pairs or 0, params.global_batch) / 3600
    yield f"{hours / 24:,.2f}"
    yield f"{hours * plan.devices.num:,.0f}"
    yield "?" if price is None else f"{hours * plan.devices.num * price:,.0f}"


def by_part(plan: Plan) -> str:
    """The memory of one device, part by part."""
    parts = (f"  {part:<24}{bytes_ / GIB:>8,.2f} GiB" for part, bytes_ in plan.memory().items())
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m clip_core.train.plan", description=__doc__)
    parser.add_argument(
        "--devices", type=int, nargs="+", default=[1, 8, 64, 1024], help="how many; default: %(default)s"
    )
    parser.add_argument("--device", nargs="+", choices=[*KINDS, "here"], default=["here"], help="of which kind")
    parser.add_argument("--shard", action="store_true", help="weights, gradients, moments in parts (FSDP), not on each")
    parser.add_argument("--pairs", type=int, help="for training; needed for days where a recipe names epochs")
    parser.add_argument("--price", type=float, help="of a device for an hour: yours, none is known here")
    parser.add_argument("--params-file", type=Path, help="default: the project's")
    arguments = parser.parse_args()
    with told_to_the_user():
        if min(arguments.devices) < 1:
            raise UserError(f"--devices {min(arguments.devices)}: at least 1")
        stages = read_stages(arguments.params_file or project_root() / "params.yaml")
        kinds = [measured(this_device()) if name == "here" else KINDS[name] for name in arguments.device]
        for name, setup in stages.setups().items():
            _print_stage(name, setup, stages.architecture(), kinds, arguments)


def _print_stage(
    name: str, setup: Setup, architecture: Architecture, kinds: list[Device], arguments: argparse.Namespace
) -> None:
    if setup.params.schedule.num_steps == 0:
        print(f"{name}: nothing trains\n")
        return
    setup = replace(setup, params=with_precision_resolved(setup.params))
    params = setup.params
    for kind in kinds:
        plans = [Plan(setup, architecture, Devices(kind, num, arguments.shard)) for num in arguments.devices]
        print(
            f"{name}: global batch {params.global_batch:,}, micro_batch {params.micro_batch or 'null'}, "
            f"{params.precision}, on {kind.name} ({kind.memory / GIB:,.1f} GiB)"
        )
        print(table(plans, arguments.pairs, arguments.price))
        print(f"each of {plans[0].devices.num:,} as written:\n{by_part(plans[0])}")
        print(f"figures of {kind.name}: {kind.source}\n")


if __name__ == "__main__":
    main()

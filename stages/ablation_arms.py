"""The ablation's arms: what each starts from, and how long it trains what."""

from dataclasses import dataclass
from typing import Literal

from clip_core.config import Params, Schedule, WarmStart
from clip_core.errors import UserError


@dataclass(frozen=True)
class Arm:
    """What an arm starts from and what it trains, stage after stage."""

    title: str
    start: Literal["english", "random"]
    trains: dict[str, Schedule]


def arms_of(params: Params) -> dict[str, Arm]:
    """The arms: all take as many Chinese steps as the two stages together, but the last, which may use all steps."""
    first, second, lr = params.stage1.schedule, params.stage2.schedule, params.ablation
    chinese = num_steps(first) + num_steps(second)
    all_steps = chinese + english_steps(params)

    def steps(schedule: Schedule, **values: float) -> Schedule:
        return schedule.model_copy(update=values)

    scratch = steps(second, num_steps=chinese, peak_lr=lr.scratch_peak_lr)
    return {
        "scratch": Arm("from scratch", "random", {"stage2": scratch}),
        "stage1": Arm("stage 1 only", "english", {"stage1": steps(first, num_steps=chinese)}),
        "direct": Arm(
            "one stage, nothing frozen",
            "english",
            {"stage2": steps(second, num_steps=chinese, peak_lr=lr.direct_peak_lr)},
        ),
        "two_stages": Arm("two stages", "english", {"stage1": first, "stage2": second}),
        "longer_scratch": Arm(
            "from scratch, compute-matched", "random", {"stage2": steps(scratch, num_steps=all_steps)}
        ),
    }


def english_steps(params: Params) -> int:
    """The steps of the warm start, which the ablation is about."""
    if not isinstance(params.init, WarmStart):
        raise UserError(f"the ablation needs `init.from: warm_start`, not {params.init.from_}")
    return num_steps(params.init.warm_start.schedule)


def num_steps(schedule: Schedule) -> int:
    """The schedule's steps, which the arms add up."""
    if schedule.num_steps is None:
        raise UserError("the ablation needs schedules with num_steps, not num_epochs")
    return schedule.num_steps

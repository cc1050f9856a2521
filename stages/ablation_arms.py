"""The ablation's arms: what each starts from, and how long it trains what."""

from dataclasses import dataclass
from typing import Literal

from clip_core.config import Params, Schedule


@dataclass(frozen=True)
class Arm:
    """What an arm starts from and what it trains, stage after stage."""

    title: str
    start: Literal["english", "random"]
    trains: dict[str, Schedule]


def arms_of(params: Params) -> dict[str, Arm]:
    """The arms: all take as many Chinese steps as the two stages together, but the last, which may use all steps."""
    first, second, lr = params.stage1.schedule, params.stage2.schedule, params.ablation
    chinese = first.num_steps + second.num_steps
    all_steps = chinese + params.init.warm_start.schedule.num_steps

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

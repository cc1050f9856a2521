"""The ablation's arms: what each starts from, and how long it trains what."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from clip_core.config.evaluation import PromptTemplates
from clip_core.config.section import Section
from clip_core.config.stage1 import Stage1
from clip_core.config.stage2 import Stage2
from clip_core.config.training import PeakLr, Schedule
from clip_core.errors import UserError

NAMES = ("scratch", "stage1", "direct", "two_stages", "random_text", "longer_scratch")


class Params(Section):
    warm_start: Annotated[Schedule, Field(alias="init.warm_start.schedule")]
    stage1: Stage1
    stage2: Stage2
    prompt_templates: Annotated[PromptTemplates, Field(alias="evaluate.prompt_templates")]
    scratch_peak_lr: Annotated[PeakLr, Field(alias="ablation.scratch_peak_lr")]
    direct_peak_lr: Annotated[PeakLr, Field(alias="ablation.direct_peak_lr")]


@dataclass(frozen=True)
class Arm:
    """What an arm starts from and what it trains, stage after stage."""

    title: str
    forgets: Literal["image", "text"] | None  # the side of the seed's start that is random instead
    trains: dict[str, Schedule]


def arms_of(params: Params) -> dict[str, Arm]:
    """The arms: all take as many Chinese steps as the two stages together, but the last, which may use all steps."""
    if params.stage2.distill is not None:
        raise UserError("stage2.distill: the paper's ablation has no teacher: set it to null")
    first, second = params.stage1.schedule, params.stage2.schedule
    chinese = num_steps(first) + num_steps(second)
    all_steps = chinese + num_steps(params.warm_start)

    def steps(schedule: Schedule, **values: float) -> Schedule:
        return schedule.model_copy(update=values)

    scratch = steps(second, num_steps=chinese, peak_lr=params.scratch_peak_lr)
    direct = steps(second, num_steps=chinese, peak_lr=params.direct_peak_lr)
    arms = (
        Arm("from scratch", "image", {"stage2": scratch}),
        Arm("stage 1 only", None, {"stage1": steps(first, num_steps=chinese)}),
        Arm("one stage, nothing frozen", None, {"stage2": direct}),
        Arm("two stages", None, {"stage1": first, "stage2": second}),
        Arm("two stages, random text", "text", {"stage1": first, "stage2": second}),
        Arm("from scratch, compute-matched", "image", {"stage2": steps(scratch, num_steps=all_steps)}),
    )
    return dict(zip(NAMES, arms, strict=True))


def num_steps(schedule: Schedule) -> int:
    """The schedule's steps, which the arms add up."""
    if schedule.num_steps is None:
        raise UserError("the ablation needs schedules with num_steps, not num_epochs")
    return schedule.num_steps

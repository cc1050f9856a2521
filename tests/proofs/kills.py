"""`kill -9` at 20 moments of the trainings, half of them random, the others where it hurts: 20 times the same bytes.

Then at 6 moments of stage 1 on two ranks, all processes at once.
"""

import random
import tempfile
import time
from itertools import cycle
from pathlib import Path

from clip_core.recipe import apply_recipes
from tests.conftest import copy_of, new_project, run_in
from tests.kills import (
    REPRO,
    STAGES,
    after_seconds,
    before_a_checkpoint,
    forget,
    go_on,
    kill,
    set_devices,
    while_publishing,
    while_saving,
)

NUM_KILLS, NUM_ON_TWO = 20, 6
WHERE_IT_HURTS = {
    "before the first checkpoint": before_a_checkpoint,
    "while saving": while_saving,
    "while the weights are published": while_publishing,
}


def prove() -> dict:
    """The moments of the kills, and how many steps each left to be computed again or not."""
    draw = random.Random(time.time_ns())  # other moments each time
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed = new_project(Path(scratch) / "undisturbed")
        apply_recipes([undisturbed / "recipes" / "smoke.yaml"], undisturbed / "params.yaml")
        run_in(undisturbed, "dvc", "repro")
        project = copy_of(undisturbed, Path(scratch))
        kills = killed(draw, project, undisturbed, STAGES, NUM_KILLS)
        set_devices(project, 2)
        undisturbed_seconds(project, "stage1")
        on_two = killed(draw, project, copy_of(project, Path(scratch) / "two"), ("stage1",), NUM_ON_TWO, "stage1")
    return {"kills": kills, "same_bytes": len(kills), "kills_on_two_ranks": on_two, "same_bytes_on_two": len(on_two)}


def killed(
    draw: random.Random, project: Path, undisturbed: Path, stages: tuple[str, ...], num: int, *targets: str
) -> list[dict]:
    """So many kills of `stages`, after each of which `project` ends with the bytes of `undisturbed`."""
    seconds = {stage: undisturbed_seconds(project, stage) for stage in stages}
    kills: list[dict] = []
    hurting = cycle(WHERE_IT_HURTS)
    while len(kills) < num:
        stage = draw.choice(stages)
        moment = draw.uniform(0.5, seconds[stage])
        when = next(hurting) if len(kills) % 2 else f"after {moment:.2f} s of {seconds[stage]:.1f}"
        forget(project, stage)
        is_time = WHERE_IT_HURTS.get(when) or after_seconds(moment)
        if not kill(project, stage, is_time):  # it was quicker this time: this one does not count
            continue
        kept = go_on(project, stage, undisturbed, *targets)
        kills.append({"stage": stage, "when": when, "steps_kept": kept, "same_bytes": True})
        print(f"kill {len(kills)} of {num}: {stage}, {when}: {kept} steps kept, the same bytes", flush=True)
    return kills


def undisturbed_seconds(project: Path, stage: str) -> float:
    forget(project, stage)
    start = time.monotonic()
    run_in(project, *REPRO, stage)
    return time.monotonic() - start

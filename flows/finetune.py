"""The pipeline with recipes merged in, in a worktree of its own; what it makes is an experiment of DVC's."""

import asyncio
import difflib
import os
from contextlib import chdir
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from clip_core.errors import UserError
from flows import worktree
from flows.dag import save_experiment
from flows.outage import go_on_without_the_lease
from flows.pipeline import bring_up_to_date, concluded

go_on_without_the_lease()  # here, since a worker imports this module and runs the flow

MODEL = Path("models/stage2")  # what `stage2` makes


@flow
async def finetune(
    recipes: Annotated[list[str], Field(min_length=1)],
    retries: int = 1,
    seconds_before_retry: float = 20,
    max_parallel: int = 1,
    stage_hours: float | None = None,
) -> State:
    """Runs every stage with recipes merged into the params; the workspace and what serves stay as they are.

    Args:
        recipes: names from recipes/, merged in this order, the data first: table, finetune-vit-b-16.
        retries: how often a stage that failed is tried again; one that refused its input is not.
        seconds_before_retry: for a killed run's successor: DVC calls a stage busy until the old one has ended.
        max_parallel: how many stages run at once.
        stage_hours: how long a stage may take; one that takes longer is stopped. Without it there is no limit.
    """
    root = Path.cwd()
    try:
        folder = await asyncio.to_thread(worktree.make, root, recipes)
    except UserError as error:
        return Failed(name="Refused", message=str(error))
    state = await experiment(folder, retries, seconds_before_retry, max_parallel, stage_hours)
    if not state.is_completed():
        return state
    await acreate_markdown_artifact(key="finetune", markdown=page_of(root, folder))
    return Completed(message=f"experiment {folder.name}; its weights: {(folder / MODEL).relative_to(root)}")


async def experiment(
    folder: Path, retries: int, seconds_before_retry: float, max_parallel: int, stage_hours: float | None
) -> State:
    """Runs every stage in `folder`, a worktree, and keeps what that makes as DVC's experiment of the same name."""
    os.environ["CLIP_PROJECT"] = str(folder)  # for the stages; this process runs nothing else
    with chdir(folder):
        state = await concluded(*await bring_up_to_date(retries, seconds_before_retry, max_parallel, stage_hours))
        if state.is_completed():
            await asyncio.to_thread(save_experiment, folder.name)
    return state


def page_of(root: Path, folder: Path) -> str:
    """Markdown: what was made, where it lies, how it is taken over, and how its params differ from the workspace's."""
    before, after = ((place / "params.yaml").read_text(encoding="utf-8").splitlines() for place in (root, folder))
    lines = difflib.unified_diff(before, after, "params.yaml", folder.name, n=0, lineterm="")
    return "\n".join(
        [
            f"Experiment **{folder.name}**, weights in `{(folder / MODEL).relative_to(root)}`.",
            f"`dvc exp apply {folder.name}` takes params, results and weights into the workspace.",
            *("", "```diff", *lines, "```"),
        ]
    )

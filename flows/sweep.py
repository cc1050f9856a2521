"""The pipeline with each combination of some values, as experiments: `python -m flows.sweep --grid seed=1,2`."""

if __name__ == "__main__":  # before Prefect is imported, which reads its settings on import
    from flows.server import ensure_server

    ensure_server("flows.sweep")

import asyncio
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from clip_core.errors import EXIT_CODE, UserError
from clip_core.params_file import looked_up, read_yaml
from clip_core.project import project_root
from flows import worktree
from flows.dag import stages_upstream_first
from flows.finetune import experiment
from flows.heard import heard
from flows.outage import go_on_without_the_lease

go_on_without_the_lease()  # here, since a worker imports this module and runs the flow

Settings = dict[str, object]  # dotted key of params.yaml -> value


@flow
async def sweep(
    grid: Annotated[list[str], Field(min_length=1)],
    recipes: Sequence[str] = (),
    metric: str = "reports/valid/metrics.json:all.text_to_image_mean_recall",
    lowest: bool = False,
    apply: bool = False,
    retries: int = 1,
    seconds_before_retry: float = 20,
    max_parallel: int = 1,
    stage_hours: float | None = None,
) -> State:
    """Runs every stage with each combination of the grid's values; a sweep that was stopped goes on when run again.

    Args:
        grid: the keys of params.yaml with their values: seed=1,2 stage2.epochs=1,3.
        recipes: names from recipes/ that all of them have merged in before.
        metric: what they are compared by, FILE:KEY, where FILE is a metrics file of dvc.yaml.
        lowest: whether the lowest is the best, not the highest.
        apply: whether the best one's params, results and weights are taken into the workspace.
        retries: how often a stage that failed is tried again; one that refused its input is not.
        seconds_before_retry: for a killed run's successor: DVC calls a stage busy until the old one has ended.
        max_parallel: how many stages of one combination run at once.
        stage_hours: how long a stage may take; one that takes longer is stopped. Without it there is no limit.
    """
    root = Path.cwd()
    found: list[tuple[float, Settings, str]] = []
    failed = []
    try:
        wanted = combinations(grid)
        check_metric(root, metric)
        for settings in wanted:
            worktree.with_recipes(root, recipes, settings)  # all of them, before the first one runs
        for settings in wanted:
            folder = await asyncio.to_thread(worktree.make, root, recipes, settings)
            state = await experiment(folder, retries, seconds_before_retry, max_parallel, stage_hours)
            if state.is_completed():
                found.append((figure(folder, metric), settings, folder.name))
            else:
                failed.append(f"{settings}: {state.message}")
    except UserError as error:
        return Failed(name="Refused", message=str(error))
    found.sort(key=lambda one: one[0], reverse=not lowest)
    page = table(found, metric)
    await acreate_markdown_artifact(key="sweep", markdown=page)
    print(page, flush=True)
    if failed:
        return Failed(message="\n".join(failed))
    best = found[0][2]
    if not apply:
        return Completed(message=f"the best is {best}: dvc exp apply {best}")
    code, said = await heard("dvc", "exp", "apply", best)
    return Failed(message="\n".join(said)) if code else Completed(message=f"the best is {best}, which is applied")


def combinations(grid: Sequence[str]) -> list[Settings]:
    """Each with each; UserError for what is not KEY=VALUE,VALUE."""
    axes = []
    for axis in grid:
        key, _, values = axis.partition("=")
        try:
            axes.append([(key, value) for value in YAML(typ="safe").load(f"[{values}]")])
        except YAMLError:
            axes.append([])
        if not key or not axes[-1]:
            raise UserError(f"grid: {axis}: wanted is KEY=VALUE,VALUE with a key of params.yaml, as seed=1,2")
    return [dict(one) for one in product(*axes)]


def check_metric(root: Path, metric: str) -> None:
    """Raises UserError where no stage writes the file that `metric` names."""
    files = [str(file.relative_to(root)) for stage in stages_upstream_first(root) for file in stage.metrics]
    if metric.partition(":")[0] not in files:
        raise UserError(f"metric: {metric}: wanted is FILE:KEY, where FILE is one of: {', '.join(files)}")


def figure(folder: Path, metric: str) -> float:
    """What a metrics file in `folder` has under the key; of a value with its interval the value."""
    file, _, key = metric.partition(":")
    value = looked_up(read_yaml(folder / file), key, folder / file)
    if isinstance(value, dict):
        value = value.get("value")
    if not isinstance(value, int | float):
        raise UserError(f"metric: {metric}: no number but {value!r}")
    return value


def table(found: Sequence[tuple[float, Settings, str]], metric: str) -> str:
    """Markdown: the combinations, the best one first."""
    keys = list(found[0][1]) if found else []
    head = [*keys, metric, "experiment"]
    rows = [[*map(str, settings.values()), f"{value:.4g}", name] for value, settings, name in found]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    from functools import wraps

    import tyro

    os.chdir(project_root())

    @wraps(sweep.fn)
    def run(*arguments: object, **options: object) -> State:
        return asyncio.run(sweep(*arguments, **options, return_state=True))  # ty: ignore[no-matching-overload]

    state = tyro.cli(run, prog="python -m flows.sweep")
    print(f"{'' if state.is_completed() else 'error: '}{state.message}", file=sys.stderr)
    sys.exit(0 if state.is_completed() else EXIT_CODE if state.name == "Refused" else 1)

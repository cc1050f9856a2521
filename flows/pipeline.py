"""The training flow: one Prefect task for each stage of `dvc.yaml`, derived from DVC's graph."""

if __name__ == "__main__":  # before Prefect is imported, which reads its settings on import
    from flows.server import ensure_server

    ensure_server("flows.pipeline")

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from clip_core.all_params import load_params
from clip_core.errors import EXIT_CODE, UserError
from clip_core.project import RELEASE, SERVING, project_root
from clip_core.serve import lineage, releases
from flows.dag import Stage, locked, stages_upstream_first
from flows.exchange import exchanged
from flows.healing import heal
from flows.heard import heard
from flows.outage import go_on_without_the_lease

go_on_without_the_lease()  # here, since a worker imports this module and runs the flow


class StageFailed(RuntimeError):
    """A stage ended with an error of ours, or was killed; another try may help."""


class StageRefused(StageFailed):
    """A stage found a mistake of the user's; another try would find it again."""


class StageOverdue(StageFailed):
    """A stage took longer than it may, and another try would take as long."""


def may_help(_task: object, _run: object, state: State) -> bool:
    return not isinstance(state.data, StageRefused | StageOverdue)


@task(retry_condition_fn=may_help)
async def reproduce(stage: str, hours: float | None, remote: str | None) -> State:
    """Has DVC bring `stage` up to date; the state's name tells what that took: Ran, Cached or Unchanged.

    Where `remote` has its outs they are not made again.
    """
    outcome = Path(".work", stage, "outcome.json")  # see stages/command.py; DVC hides a stage's exit code
    outcome.unlink(missing_ok=True)
    before = await asyncio.to_thread(locked, Path.cwd(), stage)
    try:
        async with asyncio.timeout(hours and hours * 3600):
            if remote:
                await heard("flows.remote", "restore", remote, stage)  # where that fails, the stage runs
            code, last_lines = await heard("dvc", "--wait-for-lock", "repro", "--single-item", stage)
    except TimeoutError:
        raise StageOverdue(
            f"stage {stage} was stopped after {hours:g} hours (stage_hours); "
            "the next run goes on from its last checkpoint"
        ) from None
    end = json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else None
    if code != 0 and end and end["kind"] == "refused":
        raise StageRefused(f"stage {stage} refused: {end['message']}")
    if code != 0:
        raise StageFailed("\n".join([f"stage {stage} failed (DVC's exit code {code}):", *last_lines]))
    name = "Ran" if end else "Unchanged" if await asyncio.to_thread(locked, Path.cwd(), stage) == before else "Cached"
    return Completed(name=name, message=f"{stage}: {name}")


@task
async def skip(stage: str) -> State:
    """Marks a stage that has nothing to do."""
    return Completed(name="Unchanged", message=f"{stage}: Unchanged")


@task(name="add release")
def add_release(folder: Path, keep: int) -> str:
    """Has the release that the stage `deploy` proved lie where it can be served; says whether it is the one."""
    release = releases.add(SERVING, folder, keep).release
    lineage.keep(SERVING, folder, Path())
    return releases.announcement(SERVING, release)


@flow
async def pipeline(
    retries: int = 1,
    seconds_before_retry: float = 20,
    max_parallel: int = 1,
    stage_hours: float | None = None,
    remote: str | None = None,
) -> State:
    """Brings every stage of `dvc.yaml` in the working directory up to date, upstream first.

    Args:
        retries: how often a stage that failed is tried again; one that refused its input is not.
        seconds_before_retry: for a killed run's successor: DVC calls a stage busy until the old one has ended.
        max_parallel: how many stages run at once.
        stage_hours: how long a stage may take; one that takes longer is stopped. Without it there is no limit.
        remote: a remote of DVC's: what other machines have put there is not made again, and what is made goes there.
    """
    try:
        params = load_params(Path("params.yaml"))
    except UserError as error:
        return Failed(name="Refused", message=str(error))
    stages, outcomes = await bring_up_to_date(retries, seconds_before_retry, max_parallel, stage_hours, remote)
    if "deploy" in outcomes and outcomes["deploy"].is_completed():
        print(add_release(RELEASE, params.releases.keep), flush=True)
    return await concluded(stages, outcomes)


async def bring_up_to_date(
    retries: int, seconds_before_retry: float, max_parallel: int, stage_hours: float | None, remote: str | None = None
) -> tuple[list[Stage], dict[str, State]]:
    """The stages of `dvc.yaml` in the working directory, and the state in which the task of each has ended.

    The exchange with a remote is two tasks more, and one that is away keeps no stage from being made.
    """
    for mended in heal(Path.cwd()):
        get_run_logger().warning(mended)
    exchanges: dict[str, State] = {}
    if remote:
        exchanges["fetch"] = await exchanged("fetch", remote, seconds_before_retry)
    reached = remote if remote and exchanges["fetch"].is_completed() else None
    stages = stages_upstream_first(Path.cwd())
    states: dict[str, asyncio.Task[State]] = {}
    patient = reproduce.with_options(retries=retries, retry_delay_seconds=seconds_before_retry)
    slots = asyncio.Semaphore(max_parallel)

    async def run(stage: Stage) -> State:
        upstream = [await states[name] for name in stage.needs]
        is_unchanged = not stage.is_dirty and all(state.name == "Unchanged" for state in upstream)
        verb, limits = (skip, ()) if is_unchanged else (patient, (stage_hours, reached))
        async with slots:  # a stage after a failed one is not run: Prefect marks it NotReady
            task_run = verb.with_options(name=stage.name)(stage.name, *limits, wait_for=upstream, return_state=True)
            return await task_run  # ty: ignore[invalid-await]: Prefect's types know no async tasks here

    async with asyncio.TaskGroup() as group:
        for stage in stages:
            states[stage.name] = group.create_task(run(stage))
    if remote:
        exchanges["push"] = await exchanged("push", remote, seconds_before_retry)
    return stages, {name: state.result() for name, state in states.items()} | exchanges


async def concluded(stages: list[Stage], outcomes: dict[str, State]) -> State:
    """The state of the whole, which it also tells on Prefect's page and in lines."""
    try:
        await acreate_markdown_artifact(key="pipeline-metrics", markdown=summary(stages, outcomes))
    except httpx.HTTPError as error:  # a page less, and no reason to fail
        print(f"note: the Prefect server did not take the summary: {error}", flush=True)
    print("\n".join(f"{name}: {state.name}" for name, state in outcomes.items()), flush=True)
    if failures := [await state.aresult(raise_on_failure=False) for state in outcomes.values() if state.is_failed()]:
        not_run = [name for name, state in outcomes.items() if not state.is_completed() and not state.is_failed()]
        return Failed(
            name="Refused" if all(isinstance(failure, StageRefused) for failure in failures) else "Failed",
            message="\n".join([*map(str, failures), f"Not run because of it: {', '.join(not_run) or 'nothing'}"]),
        )
    return Completed()


def summary(stages: list[Stage], outcomes: dict[str, State]) -> str:
    """Markdown: what happened to each stage, and the figures in the metrics files."""
    rows = ["| stage | outcome |", "|---|---|", *(f"| {name} | {state.name} |" for name, state in outcomes.items())]
    for file in (file for stage in stages for file in stage.metrics if file.exists()):
        rows += ["", f"**{file.relative_to(Path.cwd())}**", "", "| metric | value |", "|---|---|"]
        rows += [f"| {name} | {value} |" for name, value in figures(json.loads(file.read_text(encoding="utf-8")))]
    return "\n".join(rows)


def figures(tree: object, name: str = "") -> list[tuple[str, str]]:
    """The leaves of a metrics file as (dotted name, text); a value with its interval is one leaf."""
    if not isinstance(tree, dict):
        return [(name, f"{tree:.4g}" if isinstance(tree, float) else str(tree))]
    if {"value", "low", "high"} <= tree.keys():
        return [(name, "{value:.3f} ({low:.3f} to {high:.3f})".format(**tree))]
    return [row for key, child in tree.items() for row in figures(child, f"{name}.{key}".lstrip("."))]


if __name__ == "__main__":
    os.chdir(project_root())
    try:
        state = asyncio.run(pipeline(return_state=True))  # ty: ignore[invalid-argument-type]: as above
    except httpx.HTTPError as error:
        sys.exit(f"error: the Prefect server does not answer: {error}. What stages have done stands above and is kept.")
    if not state.is_completed():
        print(f"error: {state.message}", file=sys.stderr)
        sys.exit(EXIT_CODE if state.name == "Refused" else 1)

"""The training flow: one Prefect task for each stage of `dvc.yaml`, derived from DVC's graph."""

if __name__ == "__main__":  # before Prefect is imported, which reads its settings on import
    from flows.server import ensure_server

    ensure_server("flows.pipeline")

import asyncio
import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from clip_core.all_params import load_params
from clip_core.guard import start, stop
from flows.dag import Stage, stages_upstream_first

GIT_HINTS = ("To track the changes", "git add", "To enable auto staging", "dvc config", "Use `dvc push`")


class StageFailed(RuntimeError):
    """A stage ended with an error; another try may help."""


class StageRefused(StageFailed):
    """A stage refused its input in its own words; another try would not help."""


def may_help(_task: object, _run: object, state: State) -> bool:
    return not isinstance(state.data, StageRefused)


@task(retry_condition_fn=may_help)
async def reproduce(stage: str) -> State:
    """Has DVC bring `stage` up to date; the state's name tells what that took: Ran, Cached or Unchanged."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout
    try:
        outcome, last_lines = await asyncio.to_thread(relay, process.stdout, get_run_logger())
        code = process.wait()
    finally:  # a cancelled run waits here, blocking, until the stage's processes are gone
        stop(process)
    if code != 0:
        said = "\n".join(last_lines)
        kind = StageRefused if any(line.startswith("error: ") for line in last_lines) else StageFailed
        raise kind(f"stage {stage} failed with exit code {code}:\n{said}")
    return Completed(name=outcome, message=f"{stage}: {outcome}")


@task
async def skip(stage: str) -> State:
    """Marks a stage that has nothing to do."""
    return Completed(name="Unchanged", message=f"{stage}: Unchanged")


def relay(lines: Iterable[str], logger) -> tuple[str, list[str]]:
    """Logs DVC's output line by line as it comes; gives the outcome and the last lines."""
    outcome, last_lines = "Ran", deque(maxlen=12)
    for line in map(str.rstrip, lines):
        if not line or line.strip().startswith(GIT_HINTS):
            continue
        logger.info(line)
        last_lines.append(line)
        if "didn't change, skipping" in line:
            outcome = "Unchanged"
        elif "is cached - skipping run" in line:
            outcome = "Cached"
    return outcome, list(last_lines)


@flow
async def pipeline(retries: int = 1, seconds_before_retry: float = 20, max_parallel: int = 1) -> State:
    """Brings every stage of `dvc.yaml` in the working directory up to date, upstream first.

    The wait before a retry is there for a killed run's successor: DVC calls a stage busy until the old one has ended.
    """
    load_params(Path("params.yaml"))
    stages = stages_upstream_first(Path.cwd())
    states: dict[str, asyncio.Task[State]] = {}
    patient = reproduce.with_options(retries=retries, retry_delay_seconds=seconds_before_retry)
    slots = asyncio.Semaphore(max_parallel)

    async def run(stage: Stage) -> State:
        upstream = [await states[name] for name in stage.needs]
        is_unchanged = not stage.is_dirty and all(state.name == "Unchanged" for state in upstream)
        verb = skip if is_unchanged else patient
        async with slots:  # a stage after a failed one is not run: Prefect marks it NotReady
            task_run = verb.with_options(name=stage.name)(stage.name, wait_for=upstream, return_state=True)
            return await task_run  # ty: ignore[invalid-await]: Prefect's types know no async tasks here

    async with asyncio.TaskGroup() as group:
        for stage in stages:
            states[stage.name] = group.create_task(run(stage))

    outcomes = {name: state.result() for name, state in states.items()}
    await acreate_markdown_artifact(key="pipeline-metrics", markdown=summary(stages, outcomes))
    print("\n".join(f"{name}: {state.name}" for name, state in outcomes.items()), flush=True)
    # A failed state's message is "Task run encountered an exception <class>: <what the exception says>".
    if failures := [str(state.message).partition(": ")[2] for state in outcomes.values() if state.is_failed()]:
        not_run = [name for name, state in outcomes.items() if not state.is_completed() and not state.is_failed()]
        return Failed(message="\n".join([*failures, f"Not run because of it: {', '.join(not_run) or 'nothing'}"]))
    return Completed()


def summary(stages: list[Stage], outcomes: dict[str, State]) -> str:
    """Markdown: what happened to each stage, and the figures in the metrics files."""
    rows = ["| stage | outcome |", "|---|---|", *(f"| {name} | {state.name} |" for name, state in outcomes.items())]
    for file in (file for stage in stages for file in stage.metrics if file.exists()):
        rows += ["", f"**{file.relative_to(Path.cwd())}**", "", "| metric | value |", "|---|---|"]
        rows += [f"| {name} | {value} |" for name, value in figures(json.loads(file.read_text()))]
    return "\n".join(rows)


def figures(tree: object, name: str = "") -> list[tuple[str, str]]:
    """The leaves of a metrics file as (dotted name, text); a value with its interval is one leaf."""
    if not isinstance(tree, dict):
        return [(name, f"{tree:.4g}" if isinstance(tree, float) else str(tree))]
    if {"value", "low", "high"} <= tree.keys():
        return [(name, "{value:.3f} ({low:.3f} to {high:.3f})".format(**tree))]
    return [row for key, child in tree.items() for row in figures(child, f"{name}.{key}".lstrip("."))]


if __name__ == "__main__":
    state = asyncio.run(pipeline(return_state=True))  # ty: ignore[invalid-argument-type]: as above
    if not state.is_completed():
        sys.exit(f"error: {state.message}")

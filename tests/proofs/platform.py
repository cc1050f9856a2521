"""The platform measured: the flow over `dvc repro`, a flow with nothing to do, the scheduler, a killed worker."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import pytest

from clip_core.guard import free_port
from clip_core.recipe import apply_recipes
from flows.server import server
from tests.conftest import new_project, run_in
from tests.prefect_api import ask, processes_in, until
from tests.toy_pipeline import new_toy_of_one_stage, start_flow
from tests.toy_platform import deployments, platform, start_platform

NUM_RUNS, EVERY = 50, 15  # seconds; a run is two processes that import Prefect
TICK = """
from prefect import flow


@flow
def tick() -> None:
    pass
"""
DEPLOYMENT = f"""
  - {{name: tick, entrypoint: tick.py:tick, work_pool: {{name: clip}}, schedules: [{{interval: {EVERY}}}]}}
"""


def prove() -> dict:
    """In seconds; single runs where no number of runs is told."""
    with tempfile.TemporaryDirectory() as scratch:
        return {"pipeline": pipeline(Path(scratch)), **scheduler(Path(scratch))}


def pipeline(scratch: Path) -> dict[str, float]:
    """All stages of the smoke project by DVC and, on another one, by the flow; then both again with nothing to do."""
    plain, flowing = (new_project(scratch / name) for name in ("plain", "flowing"))
    for project in (plain, flowing):
        apply_recipes([project / "recipes" / "smoke.yaml"], project / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(scratch / "prefect"))
        with server(free_port()) as url:
            by = {"dvc": lambda: run_in(plain, "dvc", "repro"), "flow": lambda: finished(start_flow(flowing, url))}
            full = {name: seconds(run) for name, run in by.items()}
            again = {name: seconds(run) for name, run in by.items()}
    over = full["flow"] - full["dvc"]
    return {
        "smoke_dvc": full["dvc"],
        "smoke_flow": full["flow"],
        "flow_over_dvc": round(over, 1),
        "share": round(over / full["dvc"], 2),
        "nothing_to_do_dvc": again["dvc"],
        "nothing_to_do_flow": again["flow"],
    }


def seconds(run: Callable[[], object]) -> float:
    start = time.monotonic()
    run()
    return round(time.monotonic() - start, 1)


def finished(flow: subprocess.Popen[str]) -> None:
    output, _ = flow.communicate()
    assert flow.returncode == 0, output[-3000:]


def scheduler(scratch: Path) -> dict[str, dict]:
    """How late runs of a schedule begin, and when the first does so after the worker was killed."""
    toy = scratch / "toy"
    toy.mkdir()
    new_toy_of_one_stage(toy)
    (toy / "tick.py").write_text(TICK, encoding="utf-8")
    deployments(toy, "nightly")
    with (toy / "prefect.yaml").open("a", encoding="utf-8") as file:
        file.write(DEPLOYMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(toy / ".prefect"))
        process, first_url = start_platform(toy)
        up = datetime.now(UTC)
        try:
            runs = until(lambda: first_completed(first_url, up), every=5, patience=3600)
            killed = datetime.now(UTC)
            os.kill(worker_in(toy), signal.SIGKILL)
            assert process.wait(120) == 2  # so that a service manager starts it again
            ended = datetime.now(UTC)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
    with platform(toy) as url:
        begun = until(lambda: [run for run in due(url, up) if run["start_time"] and time_of(run, "start_time") > ended])
        first = min(time_of(run, "start_time") for run in begun)
    expected = [time_of(run, "expected_start_time") for run in runs]
    assert expected == [expected[0] + number * timedelta(seconds=EVERY) for number in range(NUM_RUNS)]
    late = sorted((time_of(run, "start_time") - time_of(run, "expected_start_time")).total_seconds() for run in runs)
    return {
        "late": {
            "runs": NUM_RUNS,
            "every": EVERY,
            "median": round(median(late), 1),
            "p90": round(late[NUM_RUNS * 9 // 10 - 1], 1),
            "most": round(late[-1], 1),
        },
        "worker_killed": {
            "platform_ended_after": round((ended - killed).total_seconds(), 1),
            "a_run_began_after": round((first - killed).total_seconds(), 1),
        },
    }


def first_completed(url: str, since: datetime) -> list[dict]:
    """The first runs that were due since then, once all of them have completed."""
    done = [run for run in due(url, since)[:NUM_RUNS] if run["state_type"] == "COMPLETED"]
    return done if len(done) == NUM_RUNS else []


def due(url: str, since: datetime) -> list[dict]:
    """The runs of the schedule since then, also those to come, in their order."""
    wanted = {"expected_start_time": {"after_": since.isoformat()}}
    return ask(url, "flow_runs/filter", flow_runs=wanted, sort="EXPECTED_START_TIME_ASC")


def worker_in(toy: Path) -> int:
    """The worker's process."""
    running = processes_in(toy)
    (worker,) = [pid for pid, command in running.items() if command[1:4] == ["-m", "prefect", "worker"]]
    return worker


def time_of(run: dict, key: str) -> datetime:
    return datetime.fromisoformat(run[key])

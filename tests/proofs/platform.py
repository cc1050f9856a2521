"""What the platform costs: no-op runs, flow over plain DVC, lateness of the scheduler, and kills until work goes on.

`RUNS=10` in the environment takes fewer scheduled runs than 50.
"""

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from clip_core.guard import free_port
from flows.server import is_up, server
from tests.conftest import run_in
from tests.prefect_api import flow_runs, processes_in, until
from tests.toy_pipeline import new_toy, new_toy_of_one_stage, run_flow, runs
from tests.toy_platform import deployments, platform

RUNS = int(os.environ.get("RUNS", "50"))
TURNS = 5
INTERVAL = 20  # seconds from one scheduled run to the next
NO_OP_SECONDS = 10


def prove() -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, name) for name in ("flow", "late", "kills")]
        for folder in folders:
            folder.mkdir()
        return {
            "flow": beside_plain_dvc(new_toy(folders[0])),
            "scheduler": lateness(new_toy_of_one_stage(folders[1])),
            "kills": until_work_goes_on(new_toy_of_one_stage(folders[2])),
        }


def beside_plain_dvc(toy: Path) -> dict:
    """Seconds of a flow and of `dvc repro` by turns: when nothing is to do, and when each of four stages runs anew."""
    taken: dict[str, list[float]] = {name: [] for name in ("no-op flow", "no-op repro", "flow", "repro")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(toy / ".prefect"))
        with server(free_port()) as api:

            def flow() -> None:
                code, output = run_flow(toy, api)
                assert code == 0, output

            def repro() -> None:
                run_in(toy, sys.executable, "-m", "dvc", "repro")

            flow()
            for turn in range(TURNS):
                for name, run in (("flow", flow), ("repro", repro)):
                    (toy / "letters.in").write_text(f"{name} {turn}", encoding="utf-8")
                    runs(toy)
                    taken[name].append(seconds_of(run))
                    assert len(runs(toy)) == 4
                    taken[f"no-op {name}"].append(seconds_of(run))
                    assert runs(toy) == []
    medians = {name: round(statistics.median(seconds), 1) for name, seconds in taken.items()}
    assert medians["no-op flow"] < NO_OP_SECONDS, medians
    costs = medians["flow"] - medians["repro"]
    return medians | {"costs": round(costs, 1), "below_a_tenth_of_a_repro_from_seconds": round(10 * costs)}


def seconds_of(run: Callable[[], None]) -> float:
    start = time.monotonic()
    run()
    return time.monotonic() - start


def lateness(toy: Path) -> dict:
    """Seconds from when a run was to start until it has: the worker's look each few seconds, and a process's start."""
    deployments(toy, "nightly", seconds=INTERVAL)
    with platform(toy) as (url, _):
        until(lambda: len(ended(url)) >= RUNS, every=5)
        late = [
            (datetime.fromisoformat(run["start_time"]) - datetime.fromisoformat(run["expected_start_time"]))
            for run in ended(url)
        ]
        wrong = [run["state_name"] for run in ended(url) if run["state_type"] != "COMPLETED"]
    assert not wrong, wrong
    seconds = sorted(one.total_seconds() for one in late)
    return {
        "runs": len(seconds),
        "median_late_seconds": round(statistics.median(seconds), 1),
        "95_percent_below_seconds": round(seconds[int(0.95 * (len(seconds) - 1))], 1),
        "most_late_seconds": round(seconds[-1], 1),
    }


def ended(url: str) -> list[dict]:
    return [run for run in flow_runs(url) if run["start_time"] and run["end_time"]]


def until_work_goes_on(toy: Path) -> dict:
    """Seconds from `kill -9` of the server, of a run, and of the worker with the platform's end and its next start."""
    found = {}
    deployments(toy, "nightly", seconds=INTERVAL)
    (toy / "letters.in").write_text("wait", encoding="utf-8")  # for a file that does not come
    with platform(toy) as (url, process):
        for victim in ("prefect server", "the run"):
            until((toy / "pid").exists)
            (toy / "pid").unlink()
            mark = {"prefect server": "prefect server start", "the run": "prefect.engine"}[victim]
            since = kill_one(toy, mark)
            if victim == "prefect server":
                until(lambda: not is_up(url), every=0.1)
                until(lambda: is_up(url), every=0.1)
                (toy / "pid").touch()  # the stage has not noticed
            else:
                until((toy / "pid").exists, every=0.1)
            found[f"{victim}: seconds"] = round(time.monotonic() - since, 1)
        since = kill_one(toy, "worker start")
        assert process.wait(120) != 0  # a service manager starts it again
        found["worker: seconds until the platform has ended"] = round(time.monotonic() - since, 1)
    (toy / "pid").unlink(missing_ok=True)
    since = time.monotonic()
    with platform(toy):
        until((toy / "pid").exists, every=0.1)
        found["the next platform: seconds until a stage works"] = round(time.monotonic() - since, 1)
        (toy / "go").touch()
        until(lambda: (toy / "letters.out").exists())
    return found


def kill_one(toy: Path, mark: str) -> float:
    """`kill -9` of the process itself, not of its guard; gives the time."""
    found = [pid for pid, command in processes_in(toy).items() if mark in " ".join(command) and "-I" not in command]
    found = [pid for pid in found if "python" in psutil.Process(pid).name()]
    os.kill(found[0], signal.SIGKILL)
    return time.monotonic()

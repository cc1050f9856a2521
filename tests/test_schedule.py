"""The platform, for real: server, worker, the deployments of prefect.yaml, and runs that the scheduler creates."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from clip_core.guard import free_port
from clip_core.params_file import read_yaml
from tests.conftest import ENVIRONMENT, ROOT, copy_of, run_in
from tests.prefect_api import ask, flow_runs, log, processes_in, stage_states, until
from tests.toy_pipeline import new_toy


@dataclass(frozen=True)
class Platform:
    project: Path
    url: str


@pytest.fixture(scope="module")
def platform(smoke_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Platform]:
    """`python -m flows.platform` on a copy of the smoke project, with an interval of seconds for the nightly cron."""
    project = copy_of(smoke_project, tmp_path_factory.mktemp("platform"))
    nightly, text = '- {cron: "0 2 * * *", timezone: Asia/Shanghai}', (ROOT / "prefect.yaml").read_text()
    assert text.count(nightly) == 1
    (project / "prefect.yaml").write_text(text.replace(nightly, "- {interval: 20}"))
    port = free_port()
    log_file = project / "platform.log"
    with log_file.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.platform", "--port", str(port)],
            cwd=project,
            env=ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: "Prefect is up" in log_file.read_text() or process.poll() is not None)
        assert process.poll() is None, log_file.read_text()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_HOME", str(project / ".prefect"))  # for what the tests themselves ask the server
            yield Platform(project, f"http://127.0.0.1:{port}/api")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    until(lambda: not processes_in(project))


def test_a_run_that_the_scheduler_created_runs_the_stage_that_has_changed(platform: Platform) -> None:
    touch(platform.project / "stages" / "report.py")
    run = next_working_run(platform)
    assert run["auto_scheduled"]
    assert run["state_type"] == "COMPLETED", log(platform.url, run)
    states = stage_states(platform.url, run)
    assert {name for name, state in states.items() if state == "Ran"} == {"check", "report"}
    assert len(states) > len(read_yaml(ROOT / "dvc.yaml")["stages"])  # one task a stage, and two for evaluate


@pytest.mark.slow
def test_a_run_killed_in_training_is_resumed_by_the_next_which_finishes(platform: Platform) -> None:
    killed = run_in_training(platform)
    os.kill(process_of(killed, platform.project), signal.SIGKILL)
    until(lambda: state_of(platform, killed) == "CRASHED")

    run = next_working_run(platform)
    assert run["state_type"] == "COMPLETED", log(platform.url, run)
    assert stage_states(platform.url, run)["stage2"] == "Ran"
    assert "resuming at step" in log(platform.url, run)


def test_a_run_cancelled_in_training_ends_with_its_processes(platform: Platform) -> None:
    run = run_in_training(platform)
    ask(platform.url, f"flow_runs/{run['id']}/set_state", state={"type": "CANCELLING"})
    until(lambda: state_of(platform, run) == "CANCELLED")
    assert not any("stages.stage2" in command for command in processes_in(platform.project).values())


def test_models_are_measured_by_a_deployment_that_says_why_it_refuses(platform: Platform) -> None:
    (deployment,) = [one for one in ask(platform.url, "deployments/filter") if one["name"] == "evaluate-model"]
    asked = {"names": ["nothing"], "models": ["models/stage2"]}
    run = ask(platform.url, f"deployments/{deployment['id']}/create_flow_run", parameters=asked)
    (run,) = until(lambda: [one for one in finished(platform) if one["id"] == run["id"]])
    assert run["state"]["name"] == "Refused"
    assert "nothing" in run["state"]["message"] and "caltech_101" in run["state"]["message"]


def test_a_second_platform_says_that_one_is_running(platform: Platform) -> None:
    result = run_in(platform.project, sys.executable, "-m", "flows.platform", check=False)
    assert result.returncode == 2
    assert re.search(r"process \d+ \(.*platform.py --port .*\) has a Prefect server", result.stdout), result.stdout


def test_a_port_in_use_is_named_with_the_remedy(tmp_path: Path) -> None:
    toy = new_toy(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ENVIRONMENT, "PYTHONPATH", str(ROOT))
            result = run_in(toy, sys.executable, "-m", "flows.platform", "--port", str(port), check=False)
    assert result.returncode == 2
    assert f"port {port} is in use" in result.stdout
    assert "--port" in result.stdout


def touch(module: Path) -> None:
    """Changes a file of code but not what it does."""
    with module.open("a", encoding="utf-8") as file:
        file.write(f"\nTOUCHED = {time.time()}\n")  # a comment would rerun nothing


def run_in_training(platform: Platform) -> dict:
    """The flow run that is training stage 2 anew, as soon as a checkpoint of it lies on disk."""
    touch(platform.project / "stages" / "stage2.py")
    work = platform.project / ".work" / "stage2"
    old = set(work.glob("*/checkpoint*"))
    until(lambda: set(work.glob("*/checkpoint*")) - old, every=0.02)
    (run,) = [run for run in flow_runs(platform.url) if run["state_type"] == "RUNNING"]
    return run


def next_working_run(platform: Platform) -> dict:
    """The next flow run to finish in which a stage really ran."""
    old = {run["id"] for run in finished(platform)}
    return until(lambda: [run for run in finished(platform) if run["id"] not in old and has_ran(platform, run)])[0]


def finished(platform: Platform) -> list[dict]:
    return [run for run in flow_runs(platform.url) if run["state_type"] in ("COMPLETED", "FAILED")]


def has_ran(platform: Platform, run: dict) -> bool:
    return "Ran" in stage_states(platform.url, run).values()


def state_of(platform: Platform, run: dict) -> str:
    return next(other["state_type"] for other in flow_runs(platform.url) if other["id"] == run["id"])


def process_of(run: dict, project: Path) -> int:
    """The process in which a flow run goes on."""
    mark = f"PREFECT__FLOW_RUN_ID={run['id']}".encode()
    engines = [pid for pid, command in processes_in(project).items() if "prefect.engine" in command]
    (pid,) = [pid for pid in engines if mark in environment_of(pid)]
    return pid


def environment_of(pid: int) -> list[bytes]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []

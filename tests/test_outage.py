"""A Prefect server that dies ends no training: the stage ends by itself, DVC keeps the result, the next run works."""

import os
import signal
import time
from pathlib import Path

import pytest

from clip_core.guard import free_port
from clip_core.params_file import read_yaml
from flows.server import is_up, server
from tests.conftest import ENVIRONMENT
from tests.prefect_api import ask, commands, until
from tests.toy_pipeline import new_toy_of_one_stage, outcomes, run_flow, start_flow

# Prefect's own times are minutes: here it renews a lease each second, and tries three times in one.
ENGINE = """
import runpy
from prefect.concurrency import _leases
_leases._RENEWAL_FRACTION, _leases._RENEWAL_RETRY_BASE_DELAY, _leases._RENEWAL_RETRY_MAX_DELAY = 1 / 300, 0.1, 0.1
runpy.run_module("prefect.engine", run_name="__main__")
"""


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy of one stage, which waits for the file `go`."""
    toy = new_toy_of_one_stage(tmp_path)
    (toy / "letters.in").write_text("wait")
    monkeypatch.setenv("PREFECT_HOME", str(toy / ".prefect"))
    monkeypatch.setitem(ENVIRONMENT, "PREFECT_CLIENT_MAX_RETRIES", "1")  # for 5, each call takes a minute to fail
    return toy


def processes_of(url: str) -> dict[int, list[str]]:
    """The processes of the Prefect server at `url`, with their command lines: its own and its guards."""
    port = url.rpartition(":")[2].removesuffix("/api")
    return {pid: command for pid, command in commands().items() if port in command and "prefect" in command}


def kill_for_good(url: str) -> None:
    """`kill -9` to the server at `url` and to what would start it again."""
    for pid in processes_of(url):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not is_up(url))


def end_stage(toy: Path) -> None:
    (toy / "go").touch()


def is_kept(toy: Path) -> bool:
    """Whether the stage's result is written and DVC has it."""
    return (toy / "letters.out").exists() and "letters" in read_yaml(toy / "dvc.lock")["stages"]


@pytest.mark.slow
def test_a_server_that_dies_ends_no_stage_and_the_next_run_works_with_a_new_one(letters: Path) -> None:
    with server(free_port()) as url:
        process = start_flow(letters, url)
        until((letters / "pid").exists)
        kill_for_good(url)
        end_stage(letters)
        output, _ = process.communicate(timeout=300)
    assert outcomes(output) == {"letters": "Ran"}, output
    assert process.returncode == 1
    assert "the Prefect server does not answer" in output
    assert is_kept(letters)

    code, output = run_flow(letters, "")
    assert code == 0, output
    assert outcomes(output) == {"letters": "Unchanged"}


def test_a_scheduled_run_goes_on_when_its_lease_can_not_be_renewed(letters: Path) -> None:
    with server(free_port()) as url, (letters / "engine.txt").open("w+") as output:
        flow = ask(url, "flows/", name="pipeline")
        limit = {"concurrency_limit": 1, "concurrency_options": {"collision_strategy": "CANCEL_NEW"}}
        entrypoint = "flows.pipeline.pipeline"
        deployment = ask(url, "deployments/", name="nightly", flow_id=flow["id"], entrypoint=entrypoint, **limit)
        run = ask(url, f"deployments/{deployment['id']}/create_flow_run", state={"type": "SCHEDULED"})
        ask(url, f"flow_runs/{run['id']}/set_state", state={"type": "PENDING"})  # as the worker does
        process = start_flow(letters, url, "-c", ENGINE, run["id"], output=output)
        until((letters / "pid").exists)
        kill_for_good(url)
        until(lambda: "Concurrency lease renewal failed" in (letters / "engine.txt").read_text())
        time.sleep(2)  # a cancelled run ends by itself
        end_stage(letters)
        process.wait(300)
    assert is_kept(letters), (letters / "engine.txt").read_text()


def test_a_server_that_is_killed_is_started_again(letters: Path) -> None:
    with server(free_port()) as url:
        (pid,) = [pid for pid, command in processes_of(url).items() if command[1:3] == ["-m", "prefect"]]
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_up(url))
        until(lambda: is_up(url))

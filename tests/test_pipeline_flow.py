"""The flow on a toy repository and a real Prefect server: what it runs, what it marks, and how it ends."""

import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from clip_core.guard import free_port
from flows.server import server
from tests.conftest import ENVIRONMENT, ROOT
from tests.prefect_api import ask, flow_runs, log, processes_in, stage_states
from tests.toy_pipeline import new_toy, new_toy_of_one_stage, runs

QUICK_RETRY = (
    "-c",
    "import asyncio; from flows.pipeline import pipeline; asyncio.run(pipeline(seconds_before_retry=0.1))",
)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return new_toy(tmp_path)


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """The toy cut down to one stage."""
    return new_toy_of_one_stage(tmp_path)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a Prefect server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        with server(free_port()) as url:
            yield url


def start_flow(toy: Path, api: str, *command: str) -> subprocess.Popen[str]:
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(toy / ".prefect")}
    return subprocess.Popen(
        [sys.executable, *(command or ("-m", "flows.pipeline"))],
        cwd=toy,
        env=environment | ({"PREFECT_API_URL": api} if api else {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit "ignore"
    )


def run_flow(toy: Path, api: str, *command: str) -> tuple[int, str]:
    """The exit code and the output of `python -m flows.pipeline`."""
    process = start_flow(toy, api, *command)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def outcomes(output: str) -> dict[str, str]:
    """The final line of each stage."""
    lines = [line.split(": ") for line in output.splitlines()]
    stages = ("letters", "words@long", "words@short", "book")
    return {line[0]: line[1] for line in lines if len(line) == 2 and line[0] in stages}


def test_the_state_of_a_stage_tells_whether_it_ran_and_the_metrics_are_kept(toy: Path, api: str) -> None:
    code, output = run_flow(toy, api)
    assert code == 0, output
    assert outcomes(output) == dict.fromkeys(["letters", "words@long", "words@short", "book"], "Ran")
    assert runs(toy) == ["letters", "words-long", "words-short", "book"]
    first = flow_runs(api)[0]
    assert stage_states(api, first) == outcomes(output)
    (artifact,) = ask(api, "artifacts/filter", flow_runs={"id": {"any_": [first["id"]]}})
    assert "**words-long.json**" in artifact["data"]
    assert "| all.recall | 0.500 (0.250 to 0.750) |" in artifact["data"]

    (toy / "words-long.in").write_text("new")
    code, output = run_flow(toy, api)
    assert outcomes(output) == {"letters": "Unchanged", "words@long": "Ran", "words@short": "Unchanged", "book": "Ran"}
    assert runs(toy) == ["words-long", "book"]
    assert "python toy.py words-long" in log(api, flow_runs(api)[0])
    assert "letters' didn't change" not in output  # for an unchanged stage DVC is not even asked

    (toy / "words-long.in").write_text("")
    code, output = run_flow(toy, api)
    assert (outcomes(output)["words@long"], outcomes(output)["book"]) == ("Cached", "Cached")
    assert runs(toy) == []


def test_a_stage_that_refuses_its_input_is_not_tried_again_and_what_needs_it_is_not_run(toy: Path, api: str) -> None:
    (toy / "words-long.in").write_text("refuse")
    code, output = run_flow(toy, api)
    assert code == 1
    assert outcomes(output) == {"letters": "Ran", "words@long": "Failed", "words@short": "Ran", "book": "NotReady"}
    assert runs(toy) == ["letters", "words-long", "words-short"]
    assert "error: stage words@long failed" in output
    assert "error: refuses this input" in output
    assert "Not run because of it: book" in output
    assert flow_runs(api)[0]["state_type"] == "FAILED"


def test_a_stage_that_crashes_is_tried_again(letters: Path, api: str) -> None:
    (letters / "letters.in").write_text("crash once")
    code, output = run_flow(letters, api, *QUICK_RETRY)
    assert code == 0, output
    assert runs(letters) == ["letters", "letters"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_a_flow_is_stopped_the_processes_of_its_stage_end_with_it(
    number: signal.Signals, letters: Path, api: str
) -> None:
    (letters / "letters.in").write_text("hang")
    process = start_flow(letters, api)
    stage = int(wait_for(letters / "pid"))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait_until_gone(stage)

    (letters / "letters.in").write_text("")  # and nothing of it is in the way of the next run
    code, output = run_flow(letters, api, *QUICK_RETRY)
    assert code == 0, output
    assert runs(letters) == ["letters", "letters"]


def wait_for(file: Path) -> str:
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, f"{file} has not appeared"
        time.sleep(0.1)
    return file.read_text(encoding="utf-8")


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.1)


def test_wrong_keys_are_all_named_before_any_stage_starts(toy: Path, api: str) -> None:
    params = (toy / "params.yaml").read_text()
    (toy / "params.yaml").write_text(params.replace("global_batch:", "globl_batch:").replace("\nseed:", "\nsed:"))
    code, output = run_flow(toy, api)
    assert code == 1
    for key in ("sed", "init.warm_start.globl_batch", "stage1.globl_batch", "stage2.globl_batch"):
        assert f"{key}: Extra inputs" in output
    assert runs(toy) == []


def test_without_a_server_the_flow_brings_its_own_and_keeps_its_state_in_the_project(letters: Path) -> None:
    home = letters / "home"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "HOME", str(home))
        code, output = run_flow(letters, "")
    assert code == 0, output
    assert "starting one for this run" in output
    assert outcomes(output)["letters"] == "Ran"
    assert (letters / ".prefect" / "prefect.db").exists()
    assert not (home / ".prefect").exists()
    assert not processes_in(letters)

"""The flow on a toy repository and a real Prefect server: what it runs, what it marks, and how it ends."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from clip_core.params_file import read_yaml
from tests.conftest import ENVIRONMENT, ROOT
from tests.prefect_api import ask, flow_runs, log, processes_in, stage_states, until
from tests.toy_pipeline import new_toy, new_toy_of_one_stage, outcomes, run_flow, runs, start_flow

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

    (toy / "words-long.in").write_text("words@long is cached - skipping run")  # which the stage prints
    code, output = run_flow(toy, api)
    assert outcomes(output) == {"letters": "Unchanged", "words@long": "Ran", "words@short": "Unchanged", "book": "Ran"}
    assert runs(toy) == ["words-long", "book"]
    assert "python toy.py words-long" in log(api, flow_runs(api)[0])
    assert "letters' didn't change" not in output  # for an unchanged stage DVC is not even asked

    (toy / "words-long.in").write_text("")
    code, output = run_flow(toy, api)
    assert (outcomes(output)["words@long"], outcomes(output)["book"]) == ("Cached", "Cached")
    assert runs(toy) == []

    (toy / "letters.in").write_text(" ")  # other bytes, the same result
    code, output = run_flow(toy, api)
    assert outcomes(output) == {"letters": "Ran"} | dict.fromkeys(["words@long", "words@short", "book"], "Unchanged")


def test_a_stage_that_refuses_its_input_is_not_tried_again_and_what_needs_it_is_not_run(toy: Path, api: str) -> None:
    (toy / "words-long.in").write_text("refuse")
    code, output = run_flow(toy, api)
    assert code == 2
    assert outcomes(output) == {"letters": "Ran", "words@long": "Failed", "words@short": "Ran", "book": "NotReady"}
    assert runs(toy) == ["letters", "words-long", "words-short"]
    assert "error: stage words@long refused: refuses this input" in output
    assert "Not run because of it: book" in output
    assert flow_runs(api)[0]["state_type"] == "FAILED"


@pytest.mark.parametrize("trouble", [pytest.param("crash once", marks=pytest.mark.slow), "error: in numpy, once"])
def test_a_stage_that_crashes_is_tried_again_whatever_it_prints(trouble: str, letters: Path, api: str) -> None:
    (letters / "letters.in").write_text(trouble)
    stale = letters / ".work" / "letters" / "outcome.json"
    stale.parent.mkdir(parents=True)
    stale.write_text(json.dumps({"kind": "refused", "message": "of an earlier run"}))
    code, output = run_flow(letters, api, *QUICK_RETRY)
    assert code == 0, output
    assert runs(letters) == ["letters", "letters"]


def test_a_failure_beside_a_refusal_is_a_failure(toy: Path, api: str) -> None:
    (toy / "words-long.in").write_text("refuse")
    (toy / "words-short.in").write_text("crash")
    code, output = run_flow(toy, api)
    assert code == 1, output
    assert "stage words@long refused" in output
    assert "stage words@short failed" in output


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_however_a_flow_is_stopped_the_processes_of_its_stage_end_with_it(
    number: signal.Signals, letters: Path, api: str
) -> None:
    (letters / "letters.in").write_text("hang")
    process = start_flow(letters, api)
    stage = int(until(lambda: (letters / "pid").exists() and (letters / "pid").read_text()))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait_until_gone(stage)

    (letters / "letters.in").write_text("")  # and nothing of it is in the way of the next run
    code, output = run_flow(letters, api, *QUICK_RETRY)
    assert code == 0, output
    assert runs(letters) == ["letters", "letters"]


def test_a_stage_that_takes_too_long_is_stopped_like_a_cancelled_one_and_not_tried_again(
    letters: Path, api: str
) -> None:
    (letters / "letters.in").write_text("hang")
    hours = 10 / 3600
    flow = f"import asyncio; from flows.pipeline import pipeline; asyncio.run(pipeline(stage_hours={hours}))"
    code, output = run_flow(letters, api, "-c", flow)
    assert code == 1, output
    assert runs(letters) == ["letters"]
    assert f"stage letters was stopped after {hours:g} hours" in output
    assert "the next run goes on from its last checkpoint" in output
    assert (letters / "stopped").read_text() == "SIGINT"
    wait_until_gone(int((letters / "pid").read_text()))


def test_the_nightly_run_has_a_limit_that_the_next_night_does_not_reach() -> None:
    nightly = next(each for each in read_yaml(ROOT / "prefect.yaml")["deployments"] if each["name"] == "nightly")
    assert 0 < nightly["parameters"]["stage_hours"] < 24


def test_stages_run_with_the_python_that_runs_the_flow_whatever_the_path_and_the_shell_say(
    letters: Path, api: str
) -> None:
    fake = letters / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "PATH", f"{fake.parent}{os.pathsep}{ENVIRONMENT['PATH']}")
        patch.setitem(ENVIRONMENT, "SHELL", "/bin/false")
        code, output = run_flow(letters, api)
    assert code == 0, output
    assert runs(letters) == ["letters"]


def test_a_lock_left_by_a_process_whose_number_is_in_use_again_is_cleared_before_the_stages(
    letters: Path, api: str
) -> None:
    lock = letters / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir()
    holder = {"pid": os.getpid(), "cmd": "/venv/bin/dvc repro"}
    lock.write_text(json.dumps({"write": {f"{letters}/letters.out": holder}, "read": {}}))
    code, output = run_flow(letters, api)
    assert code == 0, output
    assert f"DVC's lock is cleared: {letters}/letters.out: process {os.getpid()}" in output


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.1)


def test_wrong_keys_are_all_named_before_any_stage_starts(toy: Path, api: str) -> None:
    params = (toy / "params.yaml").read_text()
    (toy / "params.yaml").write_text(params.replace("global_batch:", "globl_batch:").replace("\nseed:", "\nsed:"))
    code, output = run_flow(toy, api)
    assert code == 2
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
    assert "Starting a Prefect server" in output
    assert outcomes(output)["letters"] == "Ran"
    assert (letters / ".prefect" / "prefect.db").exists()
    assert not (home / ".prefect").exists()
    assert not processes_in(letters)

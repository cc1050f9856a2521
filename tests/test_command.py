"""How a stage ends: the user's mistake in one line, an error of ours with its traceback, an orphan by itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT, run_in

# A stage of this test's own, which stands in a copy of the project's packages so that dvc.yaml may declare it.
STAGE = '''"""A stage for tests."""
import sys, time
from pathlib import Path
from clip_core.config.section import Section
from clip_core.errors import UserError
from stages.command import run

class Params(Section):
    seed: int

def main(params: Params, what: str) -> None:
    if what == "refuse":
        raise UserError("pairs.csv, line 3: no caption; write one")
    if what == "break":
        import numpy as np
        np.zeros((2, 3)) @ np.zeros((2, 3))
    if what == "hang":
        Path("started").touch()
        time.sleep(120)
    print("seed", params.seed)

if __name__ == "__main__":
    run(main)
'''
PIPELINE = """stages:
  toy:
    cmd: python -m stages.toy --what hang
    params: [seed]
    outs: [never]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one stage."""
    shutil.copytree(ROOT / "clip_core", tmp_path / "clip_core", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "recipes" / "ablation").mkdir(parents=True)
    (tmp_path / "recipes" / "ablation" / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    (tmp_path / "stages").mkdir()
    for name in ("__init__.py", "command.py"):
        shutil.copy(ROOT / "stages" / name, tmp_path / "stages" / name)
    for name, text in {"stages/toy.py": STAGE, "dvc.yaml": PIPELINE, "params.yaml": "seed: 7\n"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", tmp_path / ".dvc")
    run_in(tmp_path, "git", "init", "-q", "-b", "main")
    return tmp_path


def run_toy(project: Path, what: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """What `python -m stages.toy` says, and the outcome that it leaves."""
    command = [sys.executable, "-m", "stages.toy", "--what", what]
    result = subprocess.run(command, cwd=project, env=ENVIRONMENT, text=True, capture_output=True)
    return result, json.loads((project / ".work" / "toy" / "outcome.json").read_text(encoding="utf-8"))


def test_a_mistake_of_the_users_is_its_message_alone_and_exit_code_2(project: Path) -> None:
    result, outcome = run_toy(project, "refuse")
    assert (result.returncode, result.stderr) == (2, "error: pairs.csv, line 3: no caption; write one\n")
    assert outcome == {"kind": "refused", "message": "pairs.csv, line 3: no caption; write one"}


def test_an_error_of_ours_keeps_its_traceback_though_it_is_a_value_error(project: Path) -> None:
    result, outcome = run_toy(project, "break")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "np.zeros((2, 3)) @ np.zeros((2, 3))" in result.stderr
    assert outcome["kind"] == "failed"
    assert "np.zeros((2, 3)) @ np.zeros((2, 3))" in outcome["message"]


def test_a_stage_that_is_done_says_so_and_got_what_dvc_yaml_declares(project: Path) -> None:
    result, outcome = run_toy(project, "work")
    assert (result.returncode, result.stdout) == (0, "seed 7\n")
    assert outcome == {"kind": "done", "message": ""}


def test_a_param_that_is_not_declared_does_not_reach_the_stage(project: Path) -> None:
    (project / "dvc.yaml").write_text(PIPELINE.replace("params: [seed]", "params: []"), encoding="utf-8")
    result, outcome = run_toy(project, "work")
    assert outcome["kind"] == "refused"
    assert "seed: Field required" in result.stderr


def processes_of(project: Path) -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and b"stages.toy" in read(entry / "cmdline") and cwd_of(entry) == project
    ]


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def cwd_of(entry: Path) -> Path | None:
    try:
        return (entry / "cwd").readlink()
    except OSError:
        return None


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are told apart in Linux's /proc")
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_stage_whose_dvc_was_killed_ends_itself(shell: str, project: Path) -> None:
    dvc = subprocess.Popen(["dvc", "repro"], cwd=project, env=ENVIRONMENT | {"SHELL": shell}, start_new_session=True)
    wait_until((project / "started").exists)
    assert processes_of(project)
    dvc.kill()
    dvc.wait()
    wait_until(lambda: not processes_of(project))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are told apart in Linux's /proc")
def test_a_stage_started_by_hand_outlives_the_shell_that_started_it(project: Path) -> None:
    script = f"nohup {sys.executable} -m stages.toy --what hang >/dev/null 2>&1 & sleep 0.1"
    subprocess.run(["/bin/sh", "-c", script], cwd=project, env=ENVIRONMENT, check=True)
    wait_until((project / "started").exists)
    time.sleep(1.5)  # three looks of one that watched
    (orphan,) = processes_of(project)
    os.kill(orphan, signal.SIGKILL)

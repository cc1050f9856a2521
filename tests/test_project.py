"""A typed command finds its project from any of its folders, and says elsewhere what to run where."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core.errors import UserError
from clip_core.project import MARKS, project_root, serving_folder
from flows.server import set_environment
from tests.conftest import ENVIRONMENT, ROOT

# what is typed -> what it says where the project has nothing but its two files, which are empty
COMMANDS = {
    "clip_core.serve.client 猫": "error: {}/serving: no server runs",
    "clip_core.serve.gateway": "error: {}/serving: no release to serve yet",
    "clip_core.serve.rollout": "error: {}/serving: no release yet",
    "clip_core.serve.rollout --back": "error: {}/serving: nothing to roll back to",
    "clip_core.serve.releases add release": "error: {}/params.yaml",
    "clip_core.train.work_folder": "no interrupted training",
    "clip_core.recipe nothing.yaml": "error: {}/params.yaml",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that has its two files alone; the working directory is far down in it."""
    project = tmp_path / "project"
    (project / "docs" / "more").mkdir(parents=True)
    for mark in MARKS:
        (project / mark).touch()
    monkeypatch.delenv("CLIP_PROJECT", raising=False)
    monkeypatch.chdir(project / "docs" / "more")
    return project


def run(command: str, folder: Path, **environment: str) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return result.returncode, result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_in_a_folder_of_the_project_is_one_in_the_project(command: str, project: Path) -> None:
    assert COMMANDS[command].format(project) in run(command, Path.cwd())[1]


@pytest.mark.parametrize("command", [*COMMANDS, "flows.pipeline", "flows.clean", "flows.platform --port 4201"])
def test_elsewhere_a_command_says_what_to_run_where(command: str, tmp_path: Path) -> None:
    code, said = run(command, tmp_path)
    assert code == 2
    assert said.startswith(f"error: {tmp_path}: no project here or above, whose folder has params.yaml and dvc.yaml. ")
    assert f"Run `python -m {command}` there" in said.replace("'", "")


@pytest.mark.parametrize("command", ["clip_core.serve.client 猫", "clip_core.serve.bulk in out"])
def test_who_has_no_project_is_told_how_to_ask_a_server_elsewhere(command: str, tmp_path: Path) -> None:
    assert run(command, tmp_path)[1].endswith("; to ask a server elsewhere: --url http://HOST:PORT\n")


def test_in_its_own_folder_a_project_s_paths_are_short(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert project_root() == project
    monkeypatch.chdir(project)
    assert project_root() / "params.yaml" == Path("params.yaml")


def test_the_user_may_name_the_project(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP_PROJECT", str(project))
    assert serving_folder(None) == project / "serving"
    monkeypatch.setenv("CLIP_PROJECT", str(tmp_path))
    with pytest.raises(UserError, match=rf"CLIP_PROJECT={tmp_path}: no project there"):
        project_root()


def test_a_folder_that_the_user_names_is_seen_from_the_working_directory(project: Path) -> None:
    assert serving_folder(Path("mine")) == Path("mine")
    assert run("clip_core.serve.client 猫 --serving mine", Path.cwd())[1].startswith("error: mine: no server runs")


def test_prefect_s_state_lies_in_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    set_environment()
    assert os.environ["PREFECT_HOME"] == str(project / ".prefect")

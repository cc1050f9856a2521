"""What is missing on this machine is named with its remedy, and stops set-up only where set-up would fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clip_core import doctor
from tests.conftest import ROOT


def lines_of(folder: Path, **environment: str) -> tuple[int, list[str]]:
    """The exit code and the lines of `make doctor` in `folder`, a remedy on the line of its check."""
    command = [sys.executable, "-I", str(ROOT / "clip_core" / "doctor.py")]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert not done.stderr
    return done.returncode, done.stdout.replace("\n" + " " * 26 + "->", " ->").splitlines()


def test_what_is_missing_or_noted_has_a_remedy_and_only_what_is_missing_fails() -> None:
    code, lines = lines_of(ROOT)
    assert len(lines) == 11
    for line in lines:
        assert line.split()[0] in ("ok", "MISSING", "note")
        assert line.startswith("ok") != (" -> " in line), line
    assert code == any(line.startswith("MISSING") for line in lines)


def test_a_machine_without_git_fails(tmp_path: Path) -> None:
    code, lines = lines_of(tmp_path, PATH=str(tmp_path))
    assert code == 1
    assert any(line.startswith("MISSING git") and line.endswith("-> apt-get install git") for line in lines)


@pytest.mark.parametrize(
    ("found", "said"), [("/usr/bin/nvidia-smi", "clip_core.load take it"), (None, "none: everything runs on the CPU")]
)
def test_a_gpu_is_said_to_be_used_for_what_takes_it(
    found: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: found)
    check = doctor.gpu()
    assert said in check.found
    assert not check.remedy


@pytest.mark.parametrize("is_set_up", [False, True])
def test_a_full_disk_stops_set_up_and_not_what_is_set_up(
    is_set_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if is_set_up:
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv" / "ready").touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5e9))
    check = doctor.disk_space()
    assert "12 GB" in check.remedy
    assert check.needed != is_set_up

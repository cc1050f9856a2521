"""`make prove`: what a proof has seen is written down with where and when; one that fails leaves nothing."""

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import ROOT, commit_all, run_in

TOY = '''"""Sums come out right.

More about it.
"""


def prove() -> dict:
    assert 1 + 1 == {}
    return {{"sum": 2, "of": "一"}}
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command needs of the project, with two toy proofs, of which one fails."""
    project = tmp_path_factory.mktemp("prove")
    for name in ("clip_core", "benchmarks"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "proofs", project / "tests" / "proofs", ignore=shutil.ignore_patterns("[a-z]*"))
    for name in ("Makefile", ".gitignore"):
        shutil.copy(ROOT / name, project)
    (project / "tests" / "proofs" / "sums.py").write_text(TOY.format(2))
    (project / "tests" / "proofs" / "wrong.py").write_text(TOY.format(3))
    commit_all(project, "init", "-q", "-b", "main")
    return project


def prove(project: Path, name: str = "") -> subprocess.CompletedProcess[str]:
    # -o: the environment is the one that this test runs in
    return run_in(project, "make", "-o", "setup", "prove", f"NAME={name}", check=False)


def test_without_a_name_the_proofs_are_listed(project: Path) -> None:
    result = prove(project)
    assert result.returncode == 0, result.stdout
    listed = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert listed["sums"] == listed["wrong"] == "Sums come out right."


def test_a_proof_that_holds_leaves_its_figures_with_date_commit_and_machine(project: Path) -> None:
    start = datetime.now(UTC).replace(microsecond=0)
    result = prove(project, "sums")
    assert result.returncode == 0, result.stdout
    record = json.loads((project / "reports" / "proofs" / "sums.json").read_text())
    assert record["figures"] == {"sum": 2, "of": "一"}
    assert start <= datetime.fromisoformat(record["date"]) <= datetime.now(UTC)
    assert record["commit"] == run_in(project, "git", "rev-parse", "HEAD").stdout.strip()
    assert record["dirty"] is False
    assert record["command"] == "python -m tests.proofs sums"
    assert 0 <= record["seconds"] < 60
    assert record["machine"]["cores"] == os.cpu_count()
    assert record["machine"]["cpu"]
    assert "?? reports/" in run_in(project, "git", "status", "--short").stdout  # git is to track it


def test_a_changed_tree_is_noted_and_the_records_of_proofs_are_no_change(project: Path) -> None:
    def dirty() -> bool:
        assert prove(project, "sums").returncode == 0
        return json.loads((project / "reports" / "proofs" / "sums.json").read_text())["dirty"]

    assert not dirty()
    assert not dirty()  # after a first record
    (project / "new.py").touch()
    assert dirty()
    (project / "new.py").unlink()


def test_a_proof_that_fails_writes_nothing_and_ends_with_an_error(project: Path) -> None:
    result = prove(project, "wrong")
    assert result.returncode != 0
    assert "AssertionError" in result.stdout
    assert not (project / "reports" / "proofs" / "wrong.json").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("suns", "no proof is named 'suns'. There are: sums, wrong"), ("sums wrong", "one proof at a time")],
)
def test_a_name_that_is_none_is_answered_with_those_there_are(name: str, said: str, project: Path) -> None:
    result = prove(project, name)
    assert result.returncode != 0
    assert said in result.stdout


def test_each_proof_has_a_summary() -> None:
    listed = run_in(ROOT, "python", "-m", "tests.proofs").stdout.splitlines()
    assert all(len(line.split(maxsplit=1)) == 2 for line in listed)

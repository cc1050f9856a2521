"""What a killed DVC leaves behind stops nothing that comes after."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.healing import clear_stale_locks, heal
from tests.conftest import ENVIRONMENT, commit_all, run_in
from tests.toy_pipeline import new_toy_of_one_stage


@pytest.fixture
def stranger() -> Iterator[int]:
    """The number of a process that has nothing to do with DVC."""
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_lock_whose_process_number_belongs_to_something_else_by_now_is_cleared(tmp_path: Path, stranger: int) -> None:
    toy = new_toy_of_one_stage(tmp_path)
    holder = {"pid": stranger, "cmd": "/venv/lib/dvc/__main__.py --wait-for-lock repro --single-item letters"}
    lock = toy / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir()
    lock.write_text(
        json.dumps({"write": {f"{toy}/letters.out": holder}, "read": {f"{toy}/toy.py": [holder], "/elsewhere": []}})
    )
    assert "is busy" in run_in(toy, "dvc", "repro", check=False).stdout
    first, second = clear_stale_locks(toy)
    assert first == f"DVC's lock is cleared: {toy}/letters.out: process {stranger} ({holder['cmd']}) is gone"
    assert second.startswith(f"DVC's lock is cleared: {toy}/toy.py: ")
    run_in(toy, "dvc", "repro")


@pytest.mark.parametrize("dvc", [("dvc",), (sys.executable, "-m", "dvc")])
def test_a_lock_held_by_a_living_dvc_is_left_alone(dvc: tuple[str, ...], tmp_path: Path) -> None:
    toy = new_toy_of_one_stage(tmp_path)
    (toy / "letters.in").write_text("hang")
    process = subprocess.Popen(
        [*dvc, "repro", "letters"], cwd=toy, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not (toy / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        lock = toy / ".dvc" / "tmp" / "rwlock"
        before = json.loads(lock.read_text())
        assert before["write"][f"{toy}/letters.out"]["pid"] == process.pid
        assert clear_stale_locks(toy) == []
        assert json.loads(lock.read_text()) == before
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert all(str(process.pid) in line for line in clear_stale_locks(toy))  # a dead one's too


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("left", ["", "schema: '2.0'\nstages:\n  lett"])
def test_a_lock_file_that_a_killed_dvc_left_half_written_is_the_last_commits_and_no_stage_runs_again(
    tmp_path: Path, left: str, committed: bool
) -> None:
    toy = new_toy_of_one_stage(tmp_path)
    run_in(toy, "dvc", "repro")
    if committed:
        commit_all(toy)
    whole = (toy / "dvc.lock").read_bytes()
    (toy / "dvc.lock").write_text(left)
    assert run_in(toy, "dvc", "repro", check=False).returncode
    (told,) = heal(toy)
    assert told.startswith(f"{toy}/dvc.lock: was half-written")
    assert (toy / ".work" / "half-written-dvc.lock").read_text() == left
    (toy / "letters.out").unlink()
    said = run_in(toy, "dvc", "repro").stdout
    assert "Running stage" not in said, said
    assert (toy / "dvc.lock").read_bytes() == whole
    assert heal(toy) == []


def test_a_lock_file_in_the_middle_of_a_merge_is_left_to_the_user(tmp_path: Path) -> None:
    toy = new_toy_of_one_stage(tmp_path)
    conflict = "schema: '2.0'\n<<<<<<< HEAD\nstages: {}\n=======\n>>>>>>> other\n"
    (toy / "dvc.lock").write_text(conflict)
    assert heal(toy) == []
    assert (toy / "dvc.lock").read_text() == conflict

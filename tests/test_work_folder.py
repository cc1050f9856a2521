"""Where interrupted trainings lie: nobody loses one, nobody resumes another's, and one may be adopted on purpose."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_core.errors import UserError
from clip_core.locks import try_lock
from clip_core.train import work_folder as work_folders
from clip_core.train.fingerprint import Decisive, decisive
from clip_core.train.work_folder import adopt, adoptions_in, described, interrupted, remove, work_folder
from tests.conftest import ENVIRONMENT, ROOT
from tests.tiny import saved, tiny_training

PARAMS_FILE = ROOT / "params.yaml"


class Stopped(BaseException):
    """Like a kill: nothing handles it."""


def training(seed: int = 1, stage: str = "stage1", **changes: Any) -> Decisive:
    decides = decisive(stage, f"stages.{stage}", {"seed": seed, stage: tiny_training()}, [])
    return decides.model_copy(update=changes)


def of_other_code(**changes: Any) -> Decisive:
    now = training()
    return training(code=now.code | {"clip_core.train.loss": "another"}, **changes)


def interrupt(decides: Decisive, root: Path, step: int = 40) -> Path:
    """Leaves a training with a checkpoint, as a kill would."""
    model = torch.nn.Linear(2, 2)
    with pytest.raises(Stopped), work_folder(decides, root) as work:
        saved(work, step, 600, model, torch.optim.AdamW(model.parameters()))
        raise Stopped
    return root / decides.stage / decides.fingerprint


def test_a_training_that_ends_removes_its_own_folder_alone(tmp_path: Path) -> None:
    others = [
        interrupt(training(seed=2), tmp_path),
        interrupt(of_other_code(), tmp_path),
        interrupt(training(stage="stage2"), tmp_path),
    ]
    with work_folder(training(), tmp_path) as work:
        mine = work
    assert not mine.exists()
    assert list(interrupted(tmp_path)) == sorted(others)
    assert all(list(other.glob("checkpoint*")) for other in others)


def test_the_folder_stays_when_the_work_does_not_end_well_and_is_found_again(tmp_path: Path) -> None:
    folder = interrupt(training(), tmp_path)
    with work_folder(training(), tmp_path) as work:
        assert work == folder
        assert list(work.glob("checkpoint*"))


def test_the_name_is_of_what_decides_the_bits_and_of_nothing_else(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "manifest.json").write_text("{}", encoding="utf-8")
    params = {"seed": 1, "stage1": tiny_training()}
    before = decisive("stage1", "stages.stage1", params, [store])
    assert "stages.stage1" in before.code  # the stage's own file
    assert {"torch", "timm", "transformers", "tokenizers", "numpy", "pillow", "peft", "lmdb"} == set(before.versions)
    others = [
        decisive("stage1", "stages.stage1", params | {"seed": 2}, [store]),
        decisive("stage1", "stages.stage1", {"seed": 1, "stage1": tiny_training(num_steps=13)}, [store]),
        before.model_copy(update={"code": before.code | {"clip_core.train.loss": "another"}}),
        before.model_copy(update={"versions": before.versions | {"timm": "0"}}),
        before.model_copy(update={"derived": {"tokenizer": "another"}}),
    ]
    (store / "manifest.json").write_text('{"num_images": 3}', encoding="utf-8")
    others.append(decisive("stage1", "stages.stage1", params, [store]))
    elsewhere = store.rename(tmp_path / "elsewhere")
    assert decisive("stage1", "stages.stage1", params, [elsewhere]).fingerprint == others[-1].fingerprint
    assert len({other.fingerprint for other in (before, *others)}) == 7


def test_a_training_that_other_code_left_stays_and_is_named_with_the_way_to_adopt_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = interrupt(of_other_code(), tmp_path)
    interrupt(training(seed=2), tmp_path)  # of other params: it says nothing about this one
    with work_folder(training(), tmp_path):
        told = capsys.readouterr().out
    assert f"{left} (step 40 of 600), which stays. Changed: clip_core.train.loss." in told
    assert f"python -m clip_core.train.work_folder adopt {left}" in told
    assert told.count("starting afresh") == 1
    assert list(left.glob("checkpoint*"))


def test_an_adopted_training_is_the_one_of_the_code_of_now_and_says_so(tmp_path: Path) -> None:
    versions = training().versions
    left = interrupt(of_other_code(versions=versions | {"timm": "0.1"}), tmp_path)
    adopted = adopt(left)
    assert not left.exists()
    with pytest.raises(Stopped), work_folder(training(), tmp_path) as work:
        assert work == adopted
        assert list(work.glob("checkpoint*"))
        raise Stopped
    changed = f"clip_core.train.loss, timm 0.1 -> {versions['timm']}"
    assert [str(adoption) for adoption in adoptions_in(adopted)] == [f"after step 40 by other code: {changed}"]
    with pytest.raises(UserError, match="is of this code already"):
        adopt(adopted)


def test_nothing_is_adopted_over_a_checkpoint_of_the_code_of_now(tmp_path: Path) -> None:
    left, mine = interrupt(of_other_code(), tmp_path), interrupt(training(), tmp_path)
    with pytest.raises(UserError, match=f"to give that up: python -m clip_core.train.work_folder remove {mine}"):
        adopt(left)
    remove(mine)
    assert adopt(left) == mine


def test_the_list_says_stage_step_age_bytes_and_what_differs_from_now(tmp_path: Path) -> None:
    left = interrupt(of_other_code(), tmp_path)
    line, *changed = described(left, PARAMS_FILE).splitlines()
    assert line.startswith(f"{left}  step 40 of 600  0.0 h old  ")
    assert "MiB" in line
    assert "  differs from now: seed 1 -> 2211" in changed
    assert "  differs from now: stage1.schedule.num_steps 12 -> 200" in changed
    assert "  differs from now: clip_core.train.loss" in changed
    assert not any("stage1.schedule.num_epochs" in change for change in changed)


def test_the_command_lists_and_removes(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(PARAMS_FILE.read_bytes())
    (tmp_path / "dvc.yaml").touch()
    left = interrupt(training(), tmp_path / ".work").relative_to(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "clip_core.train.work_folder", *arguments]
        environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)

    assert run().stdout.startswith(f"{left}  step 40 of 600")
    assert run("remove", str(left)).stdout == f"removed {left}\n"
    assert run().stdout == "no interrupted training\n"
    refused = run("remove", str(left))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: {left}: no interrupted training")


def test_a_training_of_an_older_version_is_listed_and_can_be_removed(tmp_path: Path) -> None:
    old = tmp_path / "stage1" / "0123456789abcdef"
    old.mkdir(parents=True)
    for name in ("lock", "checkpoint.safetensors"):
        (old / name).touch()
    assert list(interrupted(tmp_path)) == [old]
    assert "of an older version, which cannot go on" in described(old, PARAMS_FILE)
    with pytest.raises(UserError, match="no interrupted training with a checkpoint"):
        adopt(old)
    remove(old)
    assert not old.exists()


def test_a_folder_that_is_no_training_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()  # as other programs have
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="no interrupted training"):
        remove(tmp_path)
    assert (tmp_path / "mine.txt").exists()


def hold(root: Path, decides: Decisive, released: Event) -> None:
    with work_folder(decides, root):
        released.wait(60)


def pid_in(lock: Path) -> int:
    """The trainer that holds the lock; waits until there is one."""
    deadline = time.monotonic() + 60
    while not lock.exists() or not lock.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, f"nobody takes {lock}"
        time.sleep(0.01)
    return int(lock.read_text(encoding="utf-8"))


@pytest.fixture
def released() -> Event:
    return multiprocessing.get_context("spawn").Event()


@pytest.fixture
def holder(tmp_path: Path, released: Event) -> Iterator[SpawnProcess]:
    """Another process that trains in the folder until it is released."""
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, training(), released))
    process.start()
    pid_in(tmp_path / "stage1" / training().fingerprint / "lock")
    yield process
    if process.is_alive():  # to a killed one `set` would wait for ever
        released.set()
    process.join()


def test_a_second_trainer_waits_and_says_for_whom(
    tmp_path: Path, holder: SpawnProcess, released: Event, capsys: pytest.CaptureFixture[str]
) -> None:
    threading.Timer(1, released.set).start()
    with work_folder(training(), tmp_path) as work:
        holder.join(60)
        assert holder.exitcode == 0
        assert pid_in(work / "lock") == os.getpid()  # a new folder: the other removed its own
    assert f"process {holder.pid} is training this: waiting" in capsys.readouterr().out


def test_a_training_at_work_is_neither_removed_nor_adopted(tmp_path: Path, holder: SpawnProcess) -> None:
    folder = tmp_path / "stage1" / training().fingerprint
    assert described(folder, PARAMS_FILE).splitlines()[0].endswith("  at work")
    with pytest.raises(UserError, match=f"process {holder.pid} is training this"):
        remove(folder)
    other = interrupt(of_other_code(), tmp_path)
    with pytest.raises(UserError, match=f"process {holder.pid} is training this"):
        adopt(other)
    assert holder.is_alive()


def test_a_training_that_has_only_just_locked_its_folder_is_at_work_and_of_no_older_version(tmp_path: Path) -> None:
    folder = tmp_path / "stage1" / "0123456789abcdef"
    folder.mkdir(parents=True)
    with (folder / "lock").open("a+", encoding="utf-8") as lock:
        assert try_lock(lock.fileno())
        assert described(folder, PARAMS_FILE) == f"{folder}  just begun  at work"
    assert "of an older version" in described(folder, PARAMS_FILE)


def test_a_killed_trainers_folder_is_free_at_once(tmp_path: Path, holder: SpawnProcess) -> None:
    assert holder.pid
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with work_folder(training(), tmp_path) as work:
        assert pid_in(work / "lock") == os.getpid()


def test_an_adoption_that_was_killed_between_saying_and_doing_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = interrupt(of_other_code(), tmp_path)

    real = shutil.rmtree

    def killed(path: Path, **options: Any) -> None:
        if path.parent == left.parent:  # what stands where the training is to go
            raise Stopped
        real(path, **options)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(work_folders.shutil, "rmtree", killed)
        adopt(left)
    assert adoptions_in(left) == ()
    assert adopt(left).name == training().fingerprint

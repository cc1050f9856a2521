"""Stopping and resuming changes nothing: weights and curves are those of an undisturbed run, to the bit."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
import torch

from clip_core.data.batches import Batch, Pairs, decoded
from clip_core.data.store import Store
from clip_core.image import Preprocessing
from clip_core.model.clip import CLIP
from clip_core.text import parse_tokenizer
from clip_core.train.checkpoint import fingerprint, resume, save, work_folder
from clip_core.train.log import publish_curves
from clip_core.train.loop import Validation, train
from clip_core.train.optimizer import make_optimizer
from tests.tiny import IMAGE_SIZE, tiny_clip, tiny_store, tiny_tokenizer_json, tiny_training

PARAMS = tiny_training(num_steps=12, save_every=5)


class Stopped(BaseException):
    """Like a kill: nothing handles it."""


class StoppingPairs(Pairs):
    """Pairs that end the process's work when a step's batch is asked for."""

    stop_at = 0

    def batch(self, step: int) -> Batch:
        if step == self.stop_at:
            raise Stopped
        return super().batch(step)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("resume") / "store")


def run(store: Store, work: Path, stop_at: int = 0) -> CLIP:
    """Trains a new model in `work` as a new process would."""
    tokenizer_json = tiny_tokenizer_json(store)
    pictures = decoded(store, IMAGE_SIZE, Preprocessing())
    pairs = StoppingPairs(store, pictures, parse_tokenizer(tokenizer_json, 16), PARAMS, seed=1)
    pairs.stop_at = stop_at
    torch.manual_seed(time.time_ns())  # whatever was drawn before must not matter
    model = tiny_clip(tokenizer_json)
    validation = Validation(4, lambda model: {"scale": model.logit_scale.item()})
    work.mkdir(parents=True, exist_ok=True)
    train(PARAMS, model, pairs, work, model.encode_images, validation)
    return model


@pytest.fixture(scope="module")
def undisturbed(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIP, Path]:
    work = tmp_path_factory.mktemp("undisturbed") / "tiny" / "run"
    return run(store, work), work


@pytest.mark.parametrize("stops", [(3,), (6,), (11,), (8, 12), (6, 6, 11)])
def test_stopping_and_resuming_changes_nothing(
    stops: tuple[int, ...],
    store: Store,
    tmp_path: Path,
    undisturbed: tuple[CLIP, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "tiny" / "run"
    for stop in stops:
        with pytest.raises(Stopped):
            run(store, work, stop)
    capsys.readouterr()

    model = run(store, work)

    resumed = (stops[-1] - 1) // PARAMS.save_every * PARAMS.save_every + 1
    told = capsys.readouterr().out
    assert (f"resuming at step {resumed} of 12" in told) == (resumed > 1)
    wanted, found = undisturbed[0].state_dict(), model.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    for curve in ("train.csv", "validation.csv"):
        assert (work / curve).read_bytes() == (undisturbed[1] / curve).read_bytes()


def test_a_row_half_written_is_written_again(store: Store, tmp_path: Path, undisturbed: tuple[CLIP, Path]) -> None:
    work = tmp_path / "tiny" / "run"
    with pytest.raises(Stopped):
        run(store, work, stop_at=9)
    with (work / "train.csv").open("a") as file:
        file.write("1")  # would be step 10, cut short

    run(store, work)

    assert (work / "train.csv").read_bytes() == (undisturbed[1] / "train.csv").read_bytes()


def test_a_finished_training_is_only_published_again(
    store: Store, tmp_path: Path, undisturbed: tuple[CLIP, Path]
) -> None:
    work = tmp_path / "tiny" / "run"
    first = run(store, work).state_dict()
    again = run(store, work, stop_at=1).state_dict()  # asks for no batch at all
    assert all(torch.equal(first[name], again[name]) for name in first)
    publish_curves(work, tmp_path / "curves")
    assert (tmp_path / "curves" / "train.csv").read_bytes() == (undisturbed[1] / "train.csv").read_bytes()


def test_a_checkpoint_holds_step_model_and_optimizer(tmp_path: Path) -> None:
    model = tiny_clip()
    optimizer = make_optimizer(model, PARAMS.optimizer)
    torch.stack([parameter.sum() for parameter in model.parameters()]).sum().backward()
    optimizer.step()
    save(tmp_path, 7, model, optimizer)

    other = tiny_clip(seed=2)
    fresh = make_optimizer(other, PARAMS.optimizer)
    assert resume(tmp_path, other, fresh) == 7

    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        saved, loaded = optimizer.state[mine], fresh.state[theirs]
        assert saved.keys() == loaded.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_other_params_data_or_code_never_resume_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = fingerprint(PARAMS, "data")
    assert name == fingerprint(PARAMS, "data")
    names = {name, fingerprint(PARAMS, "other"), fingerprint(tiny_training(num_steps=13), "data")}
    edited = tmp_path / "loss.py"
    edited.write_text("# another loss")
    monkeypatch.setattr(sys.modules["clip_core.train.loss"], "__file__", str(edited))
    assert len(names | {fingerprint(PARAMS, "data")}) == 4


def test_the_work_folder_goes_when_the_work_ends_well_and_stays_when_it_does_not(tmp_path: Path) -> None:
    with pytest.raises(Stopped), work_folder("stage1", "a", tmp_path) as work:
        (work / "checkpoint.safetensors").touch()
        raise Stopped
    assert (tmp_path / "stage1" / "a" / "checkpoint.safetensors").exists()
    with work_folder("stage1", "a", tmp_path):
        pass
    assert not list((tmp_path / "stage1").iterdir())


def test_older_folders_of_the_stage_go_with_it_but_for_those_at_work(tmp_path: Path) -> None:
    for name in ("older", "at work"):
        with pytest.raises(Stopped), work_folder("stage1", name, tmp_path) as work:
            (work / "checkpoint.safetensors").touch()
            raise Stopped
    with pytest.raises(Stopped), work_folder("stage2", "other", tmp_path):
        raise Stopped
    with work_folder("stage1", "at work", tmp_path):
        with work_folder("stage1", "a", tmp_path):
            assert (tmp_path / "stage1" / "older").exists()
        assert [path.name for path in (tmp_path / "stage1").iterdir()] == ["at work"]
        assert (tmp_path / "stage1" / "at work" / "checkpoint.safetensors").exists()
    assert (tmp_path / "stage2" / "other").exists()


def hold(root: Path, seconds: float) -> None:
    with work_folder("stage1", "a", root):
        time.sleep(seconds)


def pid_in(lock: Path) -> int:
    """The trainer that holds the lock; waits until there is one."""
    while not lock.exists() or not lock.read_text(encoding="utf-8"):
        time.sleep(0.01)
    return int(lock.read_text(encoding="utf-8").split()[0])


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[SpawnProcess]:
    """Another process that trains in the folder for a second."""
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, 1.0))
    process.start()
    pid_in(tmp_path / "stage1" / "a" / "lock")
    yield process
    process.join()


def test_a_second_trainer_waits_and_says_for_whom(
    tmp_path: Path, holder: SpawnProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    with work_folder("stage1", "a", tmp_path) as work:
        holder.join(5)
        assert holder.exitcode == 0
        assert pid_in(work / "lock") == os.getpid()  # a new folder: the other removed its own
    assert f"process {holder.pid} is training this: waiting" in capsys.readouterr().out


def test_waiting_for_a_trainer_ends_with_advice(
    tmp_path: Path, holder: SpawnProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_core.train.checkpoint.WAIT", 0)
    with pytest.raises(ValueError, match=rf"end it \(kill {holder.pid}\)"), work_folder("stage1", "a", tmp_path):
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans are recognised in Linux's /proc")
def test_an_orphan_is_ended_and_its_work_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "stage1" / "a" / "lock"
    trainer = (
        "import sys, time; from pathlib import Path; from clip_core.train.checkpoint import work_folder\n"
        f"with work_folder('stage1', 'a', Path({str(tmp_path)!r})): time.sleep(120)"
    )
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {trainer!r}])"]
    with subprocess.Popen(command) as parent:
        orphan = pid_in(lock)
        parent.kill()
    try:
        with work_folder("stage1", "a", tmp_path):
            pass
    finally:
        with suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
    assert f"process {orphan} trains this and nobody waits for it" in capsys.readouterr().out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans are recognised in Linux's /proc")
@pytest.mark.parametrize("gone", [False, True])
def test_a_trainer_whose_parent_lives_is_no_orphan_though_that_be_process_1(
    gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = []
    monkeypatch.setattr("clip_core.train.checkpoint.WAIT", 0)
    monkeypatch.setattr(os, "kill", lambda *arguments: kills.append(arguments))
    monkeypatch.setattr(os, "getppid", lambda: 1)  # as below a container's first process
    with work_folder("stage1", "a", tmp_path) as work:
        if gone:
            lock = work / "lock"
            lock.write_text(lock.read_text() + "0")  # process 1 had another start
        with pytest.raises(ValueError, match="still trains this"), work_folder("stage1", "a", tmp_path):
            pass
    assert kills == [(os.getpid(), signal.SIGTERM)] * gone

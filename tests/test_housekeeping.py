"""Housekeeping: what nobody needs any more goes, after it was told; what is referenced stays, whatever its age."""

import os
import re
import time
from contextlib import chdir
from pathlib import Path

import pytest
from dvc.repo import Repo

from clip_core.errors import UserError
from clip_core.project import SERVING
from clip_core.serve import releases
from clip_core.serve.release import MANIFEST
from clip_core.train.fingerprint import Decisive
from clip_core.train.work_folder import work_folder
from flows.dag import collect_garbage
from flows.housekeeping import keep_house
from tests.conftest import commit_all, run_in
from tests.toy_pipeline import new_toy_of_one_stage


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A project whose stage has run three times, with another result each time; the first one is committed."""
    toy = new_toy_of_one_stage(tmp_path)
    with (toy / ".gitignore").open("a") as file:
        file.write("/serving\n*.out\n")
    run_in(toy, "dvc", "repro")
    commit_all(toy)
    (toy / "letters.in").write_text("another")
    run_in(toy, "dvc", "repro")
    (toy / "letters.in").write_text("a third")
    run_in(toy, "dvc", "repro")
    return toy


def objects(toy: Path) -> set[Path]:
    return {path for path in (toy / ".dvc" / "cache" / "files").rglob("*") if path.is_file()}


def release(serving: Path, number: int, *events: str) -> str:
    """A release to be seen from outside, with what happened to it after it was added."""
    name = f"{number:016x}"
    folder = releases.folder_of(serving, name)
    folder.mkdir(parents=True)
    (folder / MANIFEST).touch()
    for event in ("added", *events):
        releases.record(serving, event, name)
    return name


def age(path: Path, days: float) -> Path:
    for one in [*path.rglob("*"), path]:
        os.utime(one, times=(then := time.time() - days * 86400, then))
    return path


def training(stage: str, **params: object) -> Decisive:
    return Decisive(
        stage=stage, module="stages.check", params=params, derived={}, inputs={}, code={"gone": "0"}, versions={}
    )


def stopped(decides: Decisive) -> Path:
    """The folder of a training that was interrupted in the working directory."""
    with pytest.raises(KeyboardInterrupt), work_folder(decides) as folder:
        raise KeyboardInterrupt
    return folder


def test_it_tells_first_and_with_yes_removes_what_no_branch_release_or_training_needs(toy: Path) -> None:
    with chdir(toy):
        left, fresh = age(stopped(training("stage1", seed=1)), 20), stopped(training("stage2", seed=1))
        unused, used = (Path(".work/kept/features", name) for name in ("unused", "used"))
        for folder in (unused, used):
            folder.mkdir(parents=True)
        age(unused, 20)
        there = objects(toy)
        told = list(keep_house(days=14, yes=False))
        assert told[-1].startswith("nothing was removed") and objects(toy) == there and left.exists()
        assert [line.split(":")[0] for line in told[:-2]] == [f"training {left}", f"result {unused}"]
        assert list(keep_house(days=14, yes=True))[:-1] == told[:-1]
        assert [path.exists() for path in (left, fresh, unused, used)] == [False, True, False, True]
        assert collect_garbage(toy, dry=True, branches=True) == 0
    assert objects(toy) < there
    assert (toy / "letters.out").read_text() == "lettersa third"  # what is there, committed or not
    run_in(toy, "git", "reset", "-q", "--hard")
    run_in(toy, "dvc", "checkout")  # and what is committed
    assert (toy / "letters.out").read_text() == "letters"


def test_what_a_branch_names_and_this_cache_has_never_had_is_no_obstacle(toy: Path) -> None:
    run_in(toy, "git", "checkout", "-q", "-b", "of-another-machine")
    lock = toy / "dvc.lock"
    here = lock.read_text()
    lock.write_text(re.sub(r"(?<=letters.out\n      hash: md5\n      md5: )\w+", f"{7:032x}.dir", here))
    assert lock.read_text() != here
    commit_all(toy)
    run_in(toy, "git", "checkout", "-q", "-")
    run_in(toy, "dvc", "checkout")
    with chdir(toy):
        told = list(keep_house(days=14, yes=True))
        assert told == ["DVC's cache: 2 objects that no branch or tag names", "done"]
        with pytest.raises(UserError, match="0 is the least"):
            list(keep_house(days=-1, yes=False))


def test_a_training_that_is_at_work_stays_however_old_it_is(tmp_path: Path) -> None:
    with chdir(new_toy_of_one_stage(tmp_path)), work_folder(training("stage1", seed=1)) as folder:
        age(folder, 20)
        lines = list(keep_house(days=14, yes=True))
        assert folder.exists() and any(f"is training this: end it first (kill {os.getpid()})" in one for one in lines)


def test_a_release_that_serves_that_one_can_go_back_to_or_that_waits_for_approval_stays(tmp_path: Path) -> None:
    serving = tmp_path / SERVING
    back, old, now, waits, refused, newest = (
        release(serving, number, *events)
        for number, events in enumerate([("serves",), (), ("promoted",), ("promoted",), ("refused",), ()])
    )
    releases.make_current(serving, now, "for the test")
    assert releases.unneeded(serving, keep=1) == [refused, old]
    releases.remove(serving, [refused, old], "for the test")
    assert releases.added(serving) == [newest, waits, now, back]
    assert releases.unneeded(serving, keep=1) == []


def test_while_a_dvc_is_at_work_it_ends_and_names_it(tmp_path: Path) -> None:
    toy = new_toy_of_one_stage(tmp_path)
    with chdir(toy), Repo(str(toy)) as repo, repo.lock, pytest.raises(UserError, match=rf"process {os.getpid()} \("):
        list(keep_house(days=14, yes=True))

"""`make clean` loses nothing: what it removes comes back from DVC's cache without a run."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT, run_in
from tests.prefect_api import until
from tests.toy_pipeline import new_toy, runs

OUTS = ("letters.out", "words-long.out", "words-short.out", "book.out")
SERVED = """
  release:
    cmd: mkdir -p serving/shop models/onnx && cp book.out serving/shop && cp book.out models/onnx
    deps: [book.out]
    outs: [serving/shop, models/onnx]
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A toy repository with the project's Makefile; its stages have run."""
    toy = new_toy(tmp_path)
    with (toy / "dvc.yaml").open("a") as file:
        file.write(SERVED)
    with (toy / ".gitignore").open("a") as file:
        file.write("/models\n/serving\n")
    shutil.copy(ROOT / "Makefile", toy)
    for name, target in {".venv": sys.prefix, "flows": ROOT / "flows", "clip_core": ROOT / "clip_core"}.items():
        (toy / name).symlink_to(target)
    run_in(toy, "dvc", "repro")
    assert len(runs(toy)) == len(OUTS)
    return toy


def files_of(toy: Path) -> dict[str, str]:
    """What the stages have made, and what lies beside it."""
    made = [toy / out for out in OUTS] + [*toy.glob("models/**/*"), *toy.glob("serving/**/*")]
    return {str(file.relative_to(toy)): file.read_text() for file in made if file.is_file()}


def test_what_clean_removes_comes_back_from_the_cache_and_no_stage_runs(toy: Path) -> None:
    before = files_of(toy)
    assert "outputs removed: 5" in run_in(toy, "make", "clean").stdout
    assert not any(out in files_of(toy) for out in OUTS)
    assert not (toy / "models").exists()
    run_in(toy, "dvc", "repro")
    assert files_of(toy) == before
    assert runs(toy) == []


def test_what_serves_what_trains_and_what_is_the_user_s_stays(toy: Path) -> None:
    theirs = (
        *("serving/live/serve/model", "serving/mine", ".work/stage1/abc/checkpoint", ".work/stage1/abc/lock"),
        *("models/mine/model.pt", "reports/mine.html", "pairs.csv"),
    )
    for name in theirs:
        (toy / name).parent.mkdir(parents=True, exist_ok=True)
        (toy / name).write_text(name)
    run_in(toy, "dvc", "add", "pairs.csv")  # which is no output, though DVC's cache has it
    said = run_in(toy, "make", "clean").stdout
    assert [name for name in theirs if not (toy / name).exists()] == []
    assert (toy / "serving" / "shop" / "book.out").exists()
    assert not (toy / "models" / "onnx").exists()
    assert "python -m clip_core.train.work_folder" in said


def test_what_the_cache_does_not_have_as_it_is_stays_and_is_named(toy: Path) -> None:
    shutil.rmtree(toy / ".dvc" / "cache")
    run_in(toy, "dvc", "commit", "letters")
    (toy / "book.out").unlink()
    (toy / "book.out").write_text("mine")
    (toy / "words-long.out").unlink()
    said = run_in(toy, "make", "clean").stdout
    assert set(files_of(toy)) == {"words-short.out", "book.out", "models/onnx/book.out", "serving/shop/book.out"}
    assert "outputs removed: 1" in said
    assert ": words-short.out book.out models/onnx" in said


def test_an_output_that_a_stopped_run_left_stays(toy: Path) -> None:
    (toy / "dvc.lock").unlink()
    before = files_of(toy)
    run_in(toy, "make", "clean")
    assert files_of(toy) == before


@pytest.mark.parametrize("between_stages", [False, True])
def test_while_dvc_is_at_work_clean_removes_nothing_and_names_it(between_stages: bool, toy: Path) -> None:
    hold = "import sys, time; from dvc.repo import Repo\nwith Repo().lock: open('pid', 'w').close(); time.sleep(600)"
    (toy / "words-short.in").write_text("hang")
    command = (sys.executable, "-c", hold) if between_stages else ("dvc", "repro")
    process = subprocess.Popen(command, cwd=toy, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        until((toy / "pid").exists, every=0.1)
        before = files_of(toy)
        refused = run_in(toy, "make", "clean", check=False)
        assert refused.returncode == 2
        assert f"error: process {process.pid} (" in refused.stdout
        assert f"stop it: kill {process.pid}" in refused.stdout
        assert files_of(toy) == before
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "outputs removed" in run_in(toy, "make", "clean").stdout  # what a killed run left in the lock is no reason

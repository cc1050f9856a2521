"""The benchmarks run: here on a small model, where their figures mean nothing."""

import json
import runpy
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from benchmarks.command import Row
from benchmarks.encode_images import ROWS as IMAGES
from benchmarks.encode_texts import ROWS as TEXTS
from benchmarks.models import SMALL, prepare
from benchmarks.noise import now, other_cores
from benchmarks.sides import make
from benchmarks.tokenizer import ROWS as TOKENS
from tests.conftest import ENVIRONMENT, ROOT


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.models._run", lambda _python, _m, *command: run_here(*command))
        prepare(SMALL, work)
    return work


def run_here(module: str, *arguments: str) -> None:
    """`python -m module` without a process of its own, which takes less time."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        patch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__")


def run(work: Path, benchmark: str, *options: str) -> dict:
    """The rows of the result that the command writes."""
    options = ("--model", SMALL, "--work", str(work), "--repeats", "1", "--threads", "1", *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.compare.LEAST_SECONDS", 0.1)  # figures mean nothing here
        run_here(f"benchmarks.{benchmark}", *options, "--results", str(work / "results"))
    (file,) = (work / "results").glob(f"{benchmark}*.json")
    result = json.loads(file.read_text())
    assert result["threads"] == 1
    assert result["versions"]["torch"]
    return result["rows"]


def test_both_sides_are_measured_in_turn_and_agree(work: Path) -> None:
    (row,) = run(work, "tokenizer").values()
    assert row["ratio"][0] <= row["ratio"][1] <= row["ratio"][2]
    assert row["agreement"] == {"equal_rows": 1.0}
    assert row["repeats"] == 1


def test_rows_for_gpus_are_skipped_with_the_reason_where_there_is_none(work: Path) -> None:
    rows = run(work, "encode_images", "--only", "cuda bf16 torch compile / transformers")
    assert len(rows) == 2
    for row in rows.values():
        assert "ratio" in row or row["skipped"] == "torch finds no CUDA device here"


@pytest.mark.slow
def test_times_and_memory_of_loading_are_measured_in_processes_of_their_own(work: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.load", "--model", SMALL, "--work", str(work), "--repeats", "1"]
    options = ["--threads", "1", "--results", str(work / "results"), "--only", "load: transformers"]
    # a process inherits the peak of the one that starts it, and pytest's may be of real models
    subprocess.run([*command, *options], cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    (file,) = (work / "results").glob("load*.json")
    ((done,),) = json.loads(file.read_text(encoding="utf-8"))["rows"].values()
    assert 0 < done["importing"] < done["seconds"]
    assert 0 < done["peak"] < 8 * 2**30


@pytest.mark.slow
def test_searches_are_measured_with_those_before_in_turn_and_answer_alike(work: Path) -> None:
    rows = run(work, "search")
    assert len(rows) == 2
    for row in rows.values():
        assert 0 < row["our_p50"][1] <= row["our_p99"][1]
        assert row["agreement"]["largest_difference"] < 1e-5


@pytest.mark.parametrize(
    "row", [row for row in (*IMAGES, *TEXTS, *TOKENS) if "cuda" not in row.name and row.ours.get("runtime") != "onnx"]
)
def test_each_row_gives_both_sides_the_same_work(row: Row, work: Path) -> None:
    spec = {"model": str(work / SMALL), "threads": 1, "task": row.task, "num": min(row.num, 3)}
    ours, theirs = make({**spec, "side": "ours", **row.ours})(), make({**spec, **row.peer})()
    assert ours.shape == theirs.shape
    if row.task == "tokens":
        assert np.array_equal(ours, theirs)
    elif row.ours["precision"] == "fp32" and row.peer["side"] == "cn_clip":
        assert np.abs(ours - theirs).max() < 1e-5
    else:
        assert (ours * theirs).sum(axis=1).min() > 0.999


def test_what_other_processes_do_is_seen_and_what_ours_do_is_not() -> None:
    code = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as busy:
        start_ours, start_others = now([busy.pid]), now([])
        time.sleep(0.5)
        end_ours, end_others = now([busy.pid]), now([])
    assert other_cores(start_others, end_others) - other_cores(start_ours, end_ours) > 0.1

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
import torch

from benchmarks import loading, packing
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


def test_the_pictures_that_cn_clip_s_own_scripts_find_are_found(work: Path) -> None:
    options = ("--texts", "40", "--images", "500", "--only", "from files")
    (row,) = run(work, "recall", *options).values()
    assert row["agreement"] == {"equal_rows": 1.0}


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
def test_what_the_gateway_adds_to_a_search_is_measured_and_it_answers_what_triton_does(work: Path) -> None:
    (row,) = run(work, "gateway").values()
    assert row["agreement"]["largest_difference"] < 2e-4
    assert row["added_p50_ms"][0] > 0
    probes = json.loads((work / "results" / "gateway.json").read_text())["probes"]
    for path in ("/livez", "/"):
        assert probes[path]["num"] > 0
        assert 0 < probes[path]["p50"] <= probes[path]["p99"] <= probes[path]["max"]


@pytest.mark.slow
def test_embeddings_in_fp32_and_int8_are_measured_against_a_plain_server_and_are_its_own(work: Path) -> None:
    fp32, int8 = run(work, "embeddings").values()
    assert fp32["agreement"]["least_cosine"] > 0.9999
    assert 0.9 < int8["agreement"]["least_cosine"] < 0.9999
    assert min(fp32["ratio"][0], int8["ratio"][0]) > 0


@pytest.mark.slow
def test_what_triton_adds_to_the_raw_tower_is_measured_by_perf_analyzer(work: Path) -> None:
    many, one = run(work, "overhead").values()
    assert many["agreement"]["least_cosine"] > 0.9999
    assert 0 < many["our_seconds"][1] < one["our_seconds"][1]
    assert one["added_ms"][0] > 0


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


def test_all_loaders_go_through_the_same_number_of_pairs(tmp_path: Path) -> None:
    loading.prepare(tmp_path, 64)
    spec = {"task": "load", "folder": str(tmp_path), "num": 64, "threads": 1, "workers": 0}
    for ours in ({"store": "original", "decoding": "scaled"}, {"store": "squashed", "decoding": "exact"}):
        assert make({**spec, "side": "ours", **ours})().tolist() == [[64]]
    for peer in ("cn_clip", "webdataset", "files"):
        assert make({**spec, "side": peer})().tolist() == [[64]]


@pytest.fixture(scope="module")
def muge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packing")
    packing.prepare(folder, 200)
    return folder


@pytest.mark.parametrize(
    ("task", "side", "counted"),
    [
        ("pack", "ours", [200, 200]),
        ("pack", "cn_clip", [200, 200]),
        ("validate", "ours", [200]),
        ("validate", "decoding", [200]),
    ],
)
def test_both_sides_over_a_data_set_go_through_all_of_it(
    task: str, side: str, counted: list[int], muge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    spec = {"task": task, "side": side, "folder": str(muge), "num": 200, "threads": 1}
    assert make(spec)().tolist() == [counted]


@pytest.mark.parametrize(("stage", "images"), [(1, "live"), (1, "cached"), (2, "live")])
def test_without_dropout_both_sides_steps_learn_alike(
    stage: int, images: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"task": "step", "model": str(work / SMALL), "threads": 1, "stage": stage, "images": images, "batch": 8}
    train = torch.nn.Module.train
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "train", lambda module, mode=True: train(module, False))
        ours, theirs = (make({**spec, "side": side, "precision": "fp32"}) for side in ("ours", "cn_clip"))
        losses = [(float(ours()), float(theirs())) for _ in range(3)]
    assert losses[0][0] > losses[1][0] > losses[2][0]
    assert losses[0][0] == pytest.approx(losses[0][1], abs=1e-4)
    assert losses[2][0] == pytest.approx(losses[2][1], abs=0.01)  # they decay other parameters


@pytest.mark.slow
def test_a_global_batch_in_chunks_is_measured_against_batches_of_one_chunk_and_extrapolated(work: Path) -> None:
    (row,) = run(work, "step", "--only", "chunks", "--global-batch", "1024").values()
    assert row["num"] == 3 * 64
    assert row["extrapolated_to"] == 1024
    assert row["times_per_sample"][1] > 1 / row["ratio"][1]
    assert 0 < row["our_mib"] < row["peer_mib"] * 1.5


def test_the_loss_is_measured_in_time_and_memory_and_both_sides_agree(work: Path) -> None:
    (row,) = run(work, "loss", "--rows", "1024").values()
    assert row["agreement"]["difference"] < 1e-4
    assert row["peer_mib"] > 4 * 1024**2 / 2**20  # it holds all logits

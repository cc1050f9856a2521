"""Files of features and predictions: written for the challenges, read from anywhere, refused with their line."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from scipy.stats import binomtest

from clip_core.config.evaluation import Evaluate
from clip_core.evaluate.benchmark import Benchmark
from clip_core.evaluate.benchmarks.measured import measured_classes, measured_retrieval
from clip_core.evaluate.feature_files import ids_beside, read_features, write_features
from clip_core.evaluate.predictions import (
    CONFIDENCE,
    NUM_BOOTSTRAP,
    SEED,
    score_classification,
    score_retrieval,
    search,
)
from clip_core.evaluate.submissions import about_model, read_elevater, write_elevater
from tests.conftest import ROOT
from tests.made_benchmarks import write_model
from tests.tiny import tiny_store

NUM_TEXTS, NUM_IMAGES = 30, 40
RNG = np.random.default_rng(1)
ALL_RIGHT = [sorted(RNG.choice(NUM_IMAGES, RNG.integers(1, 4), replace=False).tolist()) for _ in range(NUM_TEXTS)]


def unit(rows: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_lines(file: Path, rows: list) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Features of texts and pictures in each format, with the ids of the split `valid`, and the truth."""
    for suffix in (".npy", ".parquet", ".jsonl"):
        images, texts = (tmp_path / f"{name}{suffix}" for name in ("images", "texts"))
        write_features(images, [f"valid/{100 + i}" for i in range(NUM_IMAGES)], unit(NUM_IMAGES, 2), "w", "image_id")
        write_features(texts, [f"valid/{i}" for i in range(NUM_TEXTS)], unit(NUM_TEXTS, 3), "w", "text_id")
    rows = [
        {"text_id": i, "text": "猫", "image_ids": [100 + place for place in right]} for i, right in enumerate(ALL_RIGHT)
    ]
    write_lines(tmp_path / "truth.jsonl", rows)
    return tmp_path


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".jsonl"])
def test_features_come_back_to_the_bit_with_their_ids(folder: Path, suffix: str) -> None:
    found = read_features(folder / f"images{suffix}")
    np.testing.assert_array_equal(found.features, unit(NUM_IMAGES, 2))
    prefix = "" if suffix == ".jsonl" else "valid/"  # the reference knows numbers alone
    assert found.ids == [f"{prefix}{100 + i}" for i in range(NUM_IMAGES)]
    assert found.weights == (None if suffix == ".jsonl" else "w")


def test_the_reference_finds_and_scores_the_same_in_our_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cn_clip's own make_topk_predictions and evaluation, in full, on the CPU."""
    import torch

    ours, theirs, scored = folder / "ours.jsonl", folder / "theirs.jsonl", folder / "scored.json"
    search(folder / "images.npy", folder / "texts.npy", ours, 10)
    script = ["x", "--image-feats", f"{folder}/images.jsonl", "--text-feats", f"{folder}/texts.jsonl"]
    with (
        patch.object(sys, "argv", [*script, "--output", str(theirs)]),
        patch.object(torch.Tensor, "cuda", torch.Tensor.cpu),
    ):
        runpy.run_module("cn_clip.eval.make_topk_predictions", run_name="__main__")
    assert lines_of(ours) == lines_of(theirs)
    with patch.object(sys, "argv", ["x", str(folder / "truth.jsonl"), str(ours), str(scored)]):
        runpy.run_module("cn_clip.eval.evaluation", run_name="__main__")
    expected = json.loads(scored.read_text())["scoreJson"]
    found = score_retrieval([ours], folder / "truth.jsonl")[str(ours)]
    for name, theirs_name in (
        ("recall@1", "r1"),
        ("recall@5", "r5"),
        ("recall@10", "r10"),
        ("mean_recall", "mean_recall"),
    ):
        entry = found[f"text_to_image_{name}"]
        assert 100 * entry["value"] == pytest.approx(expected[theirs_name])
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert (found["num_queries"], found["num_without_truth"]) == (NUM_TEXTS, 0)


def test_ids_may_be_texts_candidates_fewer_than_ten_and_queries_without_truth_are_counted(tmp_path: Path) -> None:
    truth = [
        {"image_id": "甲", "text_ids": ["x"]},
        {"image_id": 2, "text_ids": ["y", "z"]},
        {"image_id": 3, "text_ids": []},
    ]
    found = [{"image_id": name, "text_ids": ["z", "x", "y"]} for name in ("甲", "2", 3)]
    file = write_lines(tmp_path / "found.jsonl", found)
    told = score_retrieval([file], write_lines(tmp_path / "truth.tr.jsonl", truth))[str(file)]
    assert (told["num_queries"], told["num_without_truth"]) == (2, 1)
    assert [told[f"image_to_text_recall@{k}"]["value"] for k in (1, 5, 10)] == [0.5, 1, 1]


def test_a_second_file_is_compared_with_the_first(folder: Path) -> None:
    search(folder / "images.npy", folder / "texts.npy", folder / "first.jsonl", 10)
    best = [
        {"text_id": i, "image_ids": [100 + place for place in [*right, *(set(range(20)) - {*right})][:10]]}
        for i, right in enumerate(ALL_RIGHT)
    ]
    files = [folder / "first.jsonl", write_lines(folder / "best.jsonl", best)]
    first, second = score_retrieval(files, folder / "truth.jsonl").values()
    difference = second["text_to_image_recall@1"]["minus_first"]
    assert difference["value"] == 1 - first["text_to_image_recall@1"]["value"]
    assert difference["p_value"] < 0.01 < difference["low"]
    assert "minus_first" not in first["text_to_image_recall@1"]


GOOD = [{"text_id": i, "image_ids": list(range(100, 110))} for i in range(NUM_TEXTS)]
BAD = {
    "line 3: no JSON": [*GOOD[:2], "{", *GOOD[3:]],
    "line 1: .* is no object": ["[1]", *GOOD[1:]],
    "line 2: neither text_id with image_ids": [GOOD[0], {"text_id": 1}, *GOOD[2:]],
    "line 5: text_id 0 is there already, in line 1": [*GOOD[:4], GOOD[0], *GOOD[5:]],
    "line 1: image_ids of 0 is 7, and a list is wanted": [{"text_id": 0, "image_ids": 7}, *GOOD[1:]],
    "line 1: image_ids of 0 holds 100 twice": [{"text_id": 0, "image_ids": [100] * 10}, *GOOD[1:]],
    "line 1: nan is no id": ['{"text_id": 0, "image_ids": [NaN]}', *GOOD[1:]],
    "line 1: True is no id": [{"text_id": True, "image_ids": []}, *GOOD[1:]],
    "line 2: image_id, but the lines before have text_id": [GOOD[0], {"image_id": 1, "text_ids": [1]}],
    "1 of the text_ids are missing: 29; each": GOOD[:-1],
    "1 of the text_ids are not in the truth: 77": [*GOOD, {"text_id": 77, "image_ids": list(range(100, 110))}],
    "text_id 4 has 2 image_ids, and 10 are wanted": [*GOOD[:4], {"text_id": 4, "image_ids": [100, 101]}, *GOOD[5:]],
    "text_id 4 has 11 image_ids, and 10 are wanted": [
        *GOOD[:4],
        {"text_id": 4, "image_ids": list(range(100, 111))},
        *GOOD[5:],
    ],
    "has image_id and text_ids, but the truth asks": [{"image_id": 1, "text_ids": [1]}],
    "no line in it": [],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_predictions_are_refused_with_their_line(folder: Path, message: str) -> None:
    file = write_lines(folder / "bad.jsonl", BAD[message])
    with pytest.raises(ValueError, match=message) as error:
        score_retrieval([file], folder / "truth.jsonl")
    assert "bad.jsonl" in str(error.value)


def test_the_command_ends_with_2_on_a_bad_file_and_with_0_on_a_good_one(folder: Path) -> None:
    def score(file: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "clip_core.evaluate.predictions", "score", str(file)]
        return subprocess.run(
            [*command, "--truth", str(folder / "truth.jsonl")], cwd=ROOT, capture_output=True, text=True
        )

    bad, good = score(write_lines(folder / "bad.jsonl", GOOD[:-1])), score(write_lines(folder / "good.jsonl", GOOD))
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith(f"error: {folder}/bad.jsonl: 1 of the text_ids are missing: 29")
    assert (good.returncode, json.loads(good.stdout)[f"{folder}/good.jsonl"]["num_queries"]) == (0, NUM_TEXTS)


def told(*arguments: str | Path, rc: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "clip_core.evaluate.predictions", *map(str, arguments)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == rc, found.stderr
    return found


def test_the_command_says_where_it_wrote_and_which_option_is_missing(folder: Path) -> None:
    found = folder / "found.jsonl"
    assert told("search", folder / "images.npy", folder / "texts.npy", found).stdout == f"wrote {found}\n"
    weights, store = write_model(folder / "model"), tiny_store(folder / "split")
    store.close()
    found = told("features", weights, folder / "split", folder / "out").stdout
    assert found.endswith(f"wrote {folder}/out/images.npy\nwrote {folder}/out/texts.npy\n")
    labels = write_lines(folder / "labels.txt", ["0", "1"])
    write_elevater(folder / "classes.json", about_model("m", "d", 2, 1), np.eye(2))
    assert "--metric" in told("score", folder / "classes.json", "--truth", labels, rc=2).stderr


def test_bad_features_are_refused(folder: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_features(folder / name, "w")

    np.save(folder / "images.npy", unit(7, 4))
    refused("images.npy", "7 rows of features for 40 ids")
    ids_beside(folder / "images.npy").unlink()
    refused("images.npy", r"its ids are missing: .*images\.ids\.json")
    write_features(folder / "nan.npy", ["a", "b"], np.array([[1, 0], [np.nan, 1]]), "w", "text_id")
    refused("nan.npy", "the feature of b holds NaN")
    write_features(folder / "twice.parquet", ["a", "a"], unit(2, 5), "w", "text_id")
    refused("twice.parquet", "the id a is there twice")
    write_features(folder / "other.parquet", ["a"], unit(1, 5), "v", "text_id")
    refused("other.parquet", "features of the weights v, not of w")
    (folder / "torn.parquet").write_bytes((folder / "texts.parquet").read_bytes()[:-9])
    refused("torn.parquet", "not a file of features")
    rows = (folder / "texts.jsonl").read_text().splitlines()
    write_lines(folder / "a.jsonl", [*rows[:2], rows[0]])
    refused("a.jsonl", "line 3: the id 0 is there already, in line 1")
    write_lines(folder / "b.jsonl", [rows[0], '{"text_id": 9, "feature": [1, 2]}'])
    refused("b.jsonl", "line 2: 2 numbers, and 8")
    write_lines(folder / "c.jsonl", [rows[0], '{"text_id": 9, "feature": [1, "x"]}'])
    refused("c.jsonl", "line 2: `feature` is no list of numbers")
    refused("d.txt", "features are kept as .npy, .parquet, .jsonl")
    refused("e.npy", "no such file of features")
    write_features(folder / "v.npy", ["a"], unit(1, 6), "v", "text_id")
    with pytest.raises(ValueError, match="features of the weights v, not of w"):
        search(folder / "texts.npy", folder / "v.npy", folder / "out.jsonl", 10)


def their_submission(logits: np.ndarray, index: list[int]) -> list:
    """What zeroshot_evaluation.py of cn_clip 1.6.0 writes (its `run` and `json_prec_dump`)."""
    import torch

    outputs = torch.from_numpy(logits).softmax(dim=-1)[index]
    predictions = json.dumps([outputs.numpy().tolist()])
    return json.loads(json.dumps(json.loads(predictions, parse_float=lambda text: round(float(text), 6))))


def test_elevater_s_submission_is_the_reference_s(tmp_path: Path) -> None:
    logits = (100 * unit(50, 7) @ unit(6, 8).T).astype(np.float32)
    index = np.random.default_rng(9).permutation(50).tolist()
    about = about_model("CN-CLIP-ViT-B-16", "cifar-100", 188262913, 86192640)
    write_elevater(tmp_path / "cifar-100.json", about, logits, index)
    found = json.loads((tmp_path / "cifar-100.json").read_text())
    assert list(found) == [
        *("model_name", "dataset_name", "num_trainable_params", "num_params", "num_visual_params"),
        *("num_backbone_params", "n_shot", "rnd_seeds", "predictions"),
    ]
    assert {name: found[name] for name in about} == about
    assert np.shape(found["predictions"]) == (1, 50, 6)
    assert np.abs(np.array(found["predictions"]) - np.array(their_submission(logits, index))).max() < 1.01e-6
    with pytest.raises(ValueError, match="the index has 49 places, and must name each of the 50 pictures once"):
        write_elevater(tmp_path / "x.json", about, logits, index[:-1])


def test_elevater_s_submissions_are_scored_and_compared(tmp_path: Path) -> None:
    labels = np.random.default_rng(10).integers(0, 3, 200)
    truth = write_lines(tmp_path / "labels.txt", [str(label) for label in labels])
    about, files = about_model("m", "d", 2, 1), []
    for name, noise in (("good", 1.0), ("bad", 3.0)):
        logits = np.eye(3)[labels] + np.random.default_rng(11).normal(scale=noise, size=(200, 3))
        files.append(tmp_path / f"{name}.json")
        write_elevater(files[-1], about, logits)
    good, bad = score_classification(files, truth, "accuracy").values()
    assert good["accuracy"]["value"] == np.mean(read_elevater(files[0]).argmax(axis=1) == labels)
    assert bad["accuracy"]["minus_first"]["high"] < 0
    for metric, lines, message in (
        ("accuracy", ["0"] * 199, "200 pictures, and .* has 199 lines"),
        ("accuracy", ["0"] * 199 + ["3"], "line 200: '3': classes from 0 to 2"),
        ("accuracy", ["0 1"] + ["0"] * 199, "line 1: 2 classes, and accuracy takes one"),
        ("map_11_points", ["0 x"] + ["0"] * 199, "line 1: '0 x': classes from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            score_classification(files[:1], write_lines(tmp_path / "wrong.txt", lines), metric)


@pytest.mark.parametrize("num_wrong", [0, 1, 30])
def test_an_interval_is_what_the_benchmark_gives_for_the_same_answers(tmp_path: Path, num_wrong: int) -> None:
    params = Evaluate(num_bootstrap=NUM_BOOTSTRAP, confidence=CONFIDENCE, prompt_templates=("{}",))
    every, names = np.arange(30), [str(i) for i in range(30)]
    answers = np.where(every < num_wrong, (every + 1) % 30, every)
    truth = [{"text_id": i, "image_ids": [i]} for i in range(30)]
    found = [{"text_id": i, "image_ids": [one, *({*range(30)} - {one})][:10]} for i, one in enumerate(answers.tolist())]
    files = [write_lines(tmp_path / "found.jsonl", found), tmp_path / "found.json"]
    (told,) = score_retrieval(files[:1], write_lines(tmp_path / "truth.jsonl", truth)).values()
    seen = every >= 0
    asked = Benchmark(names, names, seen, ~seen, names, seen, [], np.stack([every, every], axis=1))
    features = np.eye(30)[answers]
    expected = measured_retrieval(features, np.eye(30), asked, ("text_to_image",), params, SEED).metrics
    recall = told["text_to_image_recall@1"]
    assert recall == {name: expected["text_to_image_recall@1"][name] for name in recall}
    exact = binomtest(30 - num_wrong, 30).proportion_ci(CONFIDENCE, method="exact")
    assert num_wrong == 1 or (recall["low"], recall["high"]) == pytest.approx((exact.low, exact.high))
    write_elevater(files[1], about_model("m", "d", 2, 1), 9 * features)
    for metric in ("accuracy", "mean_per_class"):
        (told,) = score_classification(files[1:], write_lines(tmp_path / "labels.txt", names), metric).values()
        expected = measured_classes(features, every, metric, params, SEED).metrics[metric]
        assert told[metric] == {name: expected[name] for name in recall}
        assert num_wrong == 1 or told[metric] == pytest.approx(recall)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a submission to ELEVATER"),
        ('{"predictions": [[1]]}', "not a submission to ELEVATER"),
        ('{"predictions": [[[0.1, 0.9], [1]]]}', "picture 1 has 1 classes, and the first has 2"),
        ('{"predictions": [[[0.1, 0.9], [0.5, NaN]]]}', "picture 1 hold NaN"),
        ('{"predictions": [[[0.1, "x"]]]}', "something that is no number"),
    ],
)
def test_broken_submissions_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_elevater(tmp_path / "bad.json")

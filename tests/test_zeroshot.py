"""Zero-shot classification and the metrics file as a whole, on models made by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from clip_core.config.evaluation import Evaluate
from clip_core.evaluate.benchmark import Benchmark
from clip_core.evaluate.embed import Features
from clip_core.evaluate.measure import compare, details, measure
from clip_core.evaluate.slices import slices
from clip_core.evaluate.table import metrics_table
from clip_core.inference.prompts import classifier

PARAMS = Evaluate(num_bootstrap=100, confidence=0.95, prompt_templates=("{}", "一张{}的图片"))


def perfect(num_unseen: int, classes: list[str | None]) -> tuple[Features, Benchmark]:
    """A benchmark of one text a picture, and a model that knows them all; the last pictures are unseen."""
    n = len(classes)
    names = sorted({name for name in classes if name})
    benchmark = Benchmark(
        texts=[f"名{i}" for i in range(n)],
        text_ids=[f"t{i}" for i in range(n)],
        texts_seen=np.ones(n, dtype=bool),
        are_words=np.zeros(n, dtype=bool),
        image_ids=[f"p{i}" for i in range(n)],
        is_seen=np.arange(n) < n - num_unseen,
        classes=classes,
        pairs=np.column_stack([np.arange(n), np.arange(n)]),
    )
    class_features = np.array([[name == own for own in classes] for name in names], dtype=np.float32)
    return Features(np.eye(n, dtype=np.float32), np.eye(n, dtype=np.float32), names, class_features), benchmark


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts() -> None:
    asked = []

    def encode(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        angles = np.arange(len(texts))
        return np.column_stack([np.cos(angles), np.sin(angles)])

    features = classifier(encode, ["动物", "食物"], ["{}", "一张{}的图片"])
    assert asked == ["动物", "一张动物的图片", "食物", "一张食物的图片"]
    expected = [[np.cos(0.5), np.sin(0.5)], [np.cos(2.5), np.sin(2.5)]]  # half way between two angles
    np.testing.assert_allclose(features, expected, atol=1e-12)


def test_a_picture_equally_near_to_two_classes_is_not_right() -> None:
    features, benchmark = perfect(0, ["动物", "食物"])
    alike = replace(features, classes=np.ones_like(features.classes))
    assert measure(alike, benchmark, PARAMS, seed=1)["zero_shot"]["top1_accuracy"]["value"] == 0


def test_a_perfect_model_scores_one_everywhere_and_chance_stands_beside() -> None:
    metrics = measure(*perfect(2, ["动物"] * 5 + ["食物"] * 3), PARAMS, seed=1)
    assert set(metrics) == {"seen", "unseen", "all", "zero_shot"}
    assert metrics["seen"]["text_to_image_recall@1"] == pytest.approx(
        {"value": 1, "low": 0.025 ** (1 / 6), "high": 1, "chance": 1 / 6}  # the exact bound of 6 of 6
    )
    assert metrics["all"]["mean_recall"]["chance"] == pytest.approx((1 / 8 + 5 / 8 + 1) / 3)
    assert (metrics["unseen"]["num_queries"], metrics["unseen"]["num_candidates"]) == (2, 2)
    accuracy = {"value": 1, "high": 1, "chance": 1 / 2}
    of_8, of_2 = ({"low": 0.025 ** (1 / n)} for n in (8, 2))
    assert metrics["zero_shot"]["top1_accuracy"] == pytest.approx(accuracy | of_8 | {"majority": 5 / 8})
    assert metrics["zero_shot"]["unseen_top1_accuracy"] == pytest.approx(accuracy | of_2 | {"majority": 1})


def test_a_source_without_classes_and_concepts_leaves_those_groups_out() -> None:
    metrics = measure(*perfect(0, [None] * 4), PARAMS, seed=1)
    assert set(metrics) == {"seen", "all"}
    assert "zero-shot" not in metrics_table(metrics, title="model on test")


def test_details_name_the_right_and_the_found_pictures() -> None:
    query = details(*perfect(1, ["动物"] * 12))["text_to_image"][11]
    assert (query["text"], query["group"], query["right"], query["top"][0]) == ("名11", "unseen", ["p11"], "p11")
    assert len(query["top"]) == len(query["scores"]) == 10
    assert pd.Series(query["scores"]).is_monotonic_decreasing


def test_slices_are_the_queries_of_a_length_a_script_and_a_category() -> None:
    features, benchmark = perfect(0, ["动物"] * 3 + ["食物"] * 2)
    texts = ["猫", "一只小狗在跑", "貓貓貓貓", "一個很長的句子說的是紅色的蘋果", "马"]
    images = features.images[[0, 1, 2, 4, 3]]  # the model takes the foods for each other
    found = slices(replace(features, images=images), replace(benchmark, texts=texts), PARAMS, seed=1)
    told = {
        (part["by"], part["name"]): (part["num_queries"], part["text_to_image_recall@1"]["value"]) for part in found
    }
    assert told == {
        ("length", "1-4"): (3, pytest.approx(2 / 3)),
        ("length", "5-8"): (1, 1),
        ("length", "9-16"): (1, 0),
        ("script", "neither"): (1, 1),
        ("script", "simplified"): (2, 0.5),
        ("script", "traditional"): (2, 0.5),
        ("category", "动物"): (3, 1),
        ("category", "食物"): (2, 0),
    }
    whole = measure(replace(features, images=images), benchmark, PARAMS, seed=1)["all"]["text_to_image_recall@1"]
    assert whole["value"] == sum(n * value for (by, _), (n, value) in told.items() if by == "length") / 5


def test_a_model_compared_with_itself_differs_in_nothing_and_with_a_worse_one_in_its_values() -> None:
    features, benchmark = perfect(2, ["动物"] * 5 + ["食物"] * 3)
    same = compare(features, features, benchmark, PARAMS, seed=1)
    assert {(d["value"], d["p_value"]) for metrics in same.values() for d in metrics.values()} == {(0, 1)}
    worse = replace(features, images=np.roll(features.images, 1, axis=0))
    found = compare(features, worse, benchmark, PARAMS, seed=1)
    ours, theirs = (measure(one, benchmark, PARAMS, seed=1) for one in (features, worse))
    for name, difference in found["all"].items():
        assert difference["value"] == pytest.approx(ours["all"][name]["value"] - theirs["all"][name]["value"])
    assert found["all"]["text_to_image_recall@1"] == pytest.approx(
        {"value": 1, "low": 1, "high": 1, "p_value": 2 / 101}
    )

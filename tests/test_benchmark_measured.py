"""Figures of benchmarks against the slow definition, and what tells two models apart."""

import numpy as np
import pytest

from clip_core.config.evaluation import Evaluate
from clip_core.evaluate.benchmark import Benchmark
from clip_core.evaluate.benchmarks.measured import (
    Measured,
    by_template,
    differences,
    measured_classes,
    measured_retrieval,
    scores_of,
)
from clip_core.inference.prompts import unit

PARAMS = Evaluate(num_bootstrap=400, confidence=0.9, prompt_templates=("{}",))


def made(num: int, width: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(num, width))).astype(np.float32)


def asked(num: int) -> Benchmark:
    """A text for each picture, two for every third."""
    pairs = [(i, i % num) for i in range(num + num // 3)]
    texts = [f"t{i}" for i, _ in pairs]
    every, texts_seen = np.ones(num, dtype=bool), np.ones(len(texts), dtype=bool)
    images = [f"p{i}" for i in range(num)]
    return Benchmark(texts, texts, texts_seen, ~texts_seen, images, every, [], np.array(pairs))


def test_retrieval_is_what_a_full_sort_finds() -> None:
    benchmark, images = asked(30), made(30, 6, 0)
    texts = unit(images[benchmark.pairs[:, 1]] + 0.5 * made(40, 6, 1))
    found = measured_retrieval(texts, images, benchmark, ("text_to_image", "image_to_text"), PARAMS, seed=3)
    hits = {k: [] for k in (1, 5, 10)}
    for text, picture in benchmark.pairs:
        order = sorted(range(30), key=lambda i: -float(texts[text] @ images[i]))
        for k, found_at in hits.items():
            found_at.append(picture in order[:k])
    for k, found_at in hits.items():
        assert found.metrics[f"text_to_image_recall@{k}"]["value"] == pytest.approx(np.mean(found_at))
    means = [found.metrics[f"{way}_recall@{k}"]["value"] for way in ("text_to_image", "image_to_text") for k in hits]
    assert found.metrics["mean_recall"]["value"] == pytest.approx(np.mean(means))
    alone = measured_retrieval(texts, images, benchmark, ("text_to_image",), PARAMS, seed=3)
    assert not {name for name in alone.metrics if "image_to_text" in name or name == "mean_recall"}


def test_pictures_are_ranked_by_the_reference_s_softmax() -> None:
    images, classes = made(9, 6, 0), made(4, 6, 1)
    expected = np.exp(100.0 * images.astype(float) @ classes.T.astype(float))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(scores_of(images, classes, "roc_auc", 100.0)), expected, rtol=1e-3, atol=1e-7)
    assert (scores_of(images, classes, "accuracy", 100.0).argsort() == expected.argsort()).all()


def test_accuracy_gives_a_tie_to_no_class() -> None:
    cosines = np.array([[0.5, 0.5, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.2, 0.5, 0.3]])
    found = measured_classes(cosines, np.array([0, 0, 2, 0]), "accuracy", PARAMS, seed=1)
    assert found.metrics["accuracy"]["value"] == pytest.approx(2 / 4)
    assert found.metrics["accuracy"]["chance"] == pytest.approx(1 / 3)
    all_right = measured_classes(np.eye(3), np.arange(3), "accuracy", PARAMS, seed=1).metrics["accuracy"]
    assert (all_right["low"], all_right["high"]) == pytest.approx((0.05 ** (1 / 3), 1))  # Clopper and Pearson's


def test_the_difference_of_two_models_is_drawn_on_the_same_pictures() -> None:
    draw = np.random.default_rng(5)
    labels = draw.integers(4, size=200)
    one = np.log(draw.dirichlet(np.ones(4), 200) + np.eye(4)[labels] * 0.3)
    two = one.copy()
    two[:30] = np.log(draw.dirichlet(np.ones(4), 30))
    ours, theirs = (measured_classes(shares, labels, "accuracy", PARAMS, seed=2) for shares in (one, two))
    (found,) = differences(ours, theirs, PARAMS.confidence)
    right = [(shares.argmax(axis=1) == labels).astype(float) for shares in (one, two)]
    rng = np.random.default_rng(2)
    drawn = rng.integers(200, size=(400, 200))
    drawn_differences = [(right[0] - right[1])[rows].mean() for rows in drawn]
    assert found["value"] == pytest.approx((right[0] - right[1]).mean())
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(drawn_differences, [5, 95])))
    other = min(np.sum(np.array(drawn_differences) <= 0), np.sum(np.array(drawn_differences) >= 0))
    assert found["p_value"] == pytest.approx(2 * (other + 1) / 401)
    spread = np.ptp(np.percentile(ours.resampled["accuracy"] - theirs.resampled["accuracy"][::-1], [5, 95]))
    assert found["high"] - found["low"] < 0.7 * spread  # unpaired it would be wider


def test_a_model_is_no_better_than_itself() -> None:
    same = Measured({"accuracy": {"value": 0.5}}, {"accuracy": np.random.default_rng(0).random(100)})
    (found,) = differences(same, same, 0.95)
    assert (found["value"], found["low"], found["high"], found["p_value"]) == (0, 0, 0, 1)


def test_a_template_s_gain_is_what_is_lost_without_it() -> None:
    classes = made(3, 8, 0)
    labels = np.repeat(np.arange(3), 20)
    images = unit(classes[labels] + 0.3 * made(60, 8, 1))
    good, bad = classes, classes[[1, 2, 0]]  # the second says another class's name
    rows = by_template(images, labels, np.stack([good, bad], axis=1), "accuracy", 100.0)
    of_all = np.mean((images @ unit(good + bad).T).argmax(axis=1) == labels)
    assert [row["alone"] for row in rows] == [1.0, 0.0]
    assert [row["gain"] for row in rows] == pytest.approx([of_all - 0.0, of_all - 1.0])

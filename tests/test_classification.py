"""The metrics of zero-shot classification against their definitions, item by item."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from clip_core.evaluate.classification import METRICS, interval_of, resampled, score

RNG = np.random.default_rng(1)
SCORES = RNG.integers(0, 6, size=(60, 4)) / 10  # with many ties
LABELS = RNG.integers(0, 4, size=60)


def slow_accuracy(rows: Sequence[int], scores: np.ndarray, labels: np.ndarray) -> float:
    return float(
        np.mean([all(scores[i, labels[i]] > s for c, s in enumerate(scores[i]) if c != labels[i]) for i in rows])
    )


def slow_mean_per_class(rows: Sequence[int], scores: np.ndarray, labels: np.ndarray) -> float:
    there = {labels[i] for i in rows}
    return float(np.mean([slow_accuracy([i for i in rows if labels[i] == c], scores, labels) for c in there]))


def slow_roc_auc(rows: Sequence[int], scores: np.ndarray, labels: np.ndarray) -> float:
    pairs = list(product([i for i in rows if labels[i] == 1], [i for i in rows if labels[i] == 0]))
    margin = scores[:, 1] - scores[:, 0]
    return float(np.mean([(margin[a] > margin[b]) + (margin[a] == margin[b]) / 2 for a, b in pairs]))


def slow_map_11_points(rows: Sequence[int], scores: np.ndarray, labels: np.ndarray) -> float:
    """At each threshold the precision and the recall; VOC's interpolation of them."""
    means = []
    for c in range(scores.shape[1]):
        is_one = labels[:, c] if labels.ndim == 2 else labels == c
        num = sum(is_one[i] for i in rows)
        if num == 0:
            continue
        curve = []
        for threshold in {scores[i, c] for i in rows}:
            found = [i for i in rows if scores[i, c] >= threshold]
            right = sum(is_one[i] for i in found)
            curve.append((right / num, right / len(found)))
        points = [max((p for r, p in curve if r >= t / 10 - 1e-9), default=0) for t in range(11)]
        means.append(np.mean(points))
    return float(np.mean(means))


CASES = {
    "accuracy": (slow_accuracy, SCORES, LABELS),
    "mean_per_class": (slow_mean_per_class, SCORES, LABELS),
    "map_11_points": (slow_map_11_points, SCORES, RNG.random((60, 4)) < 0.3),
    "roc_auc": (slow_roc_auc, SCORES[:, :2], LABELS % 2),
}


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_equals_its_definition(metric: str) -> None:
    slow, scores, labels = CASES[metric]
    assert score(metric, scores, labels) == pytest.approx(slow(range(60), scores, labels))


@pytest.mark.parametrize("metric", METRICS)
def test_resampling_is_the_metric_of_the_items_drawn(metric: str) -> None:
    slow, scores, labels = CASES[metric]
    drawn = np.random.default_rng(7).integers(60, size=(20, 60))
    expected = [slow(row, scores, labels) for row in drawn]
    np.testing.assert_allclose(resampled(metric, scores, labels, 20, seed=7), expected)


def test_one_label_an_item_is_a_set_of_one() -> None:
    as_sets = LABELS[:, None] == np.arange(4)
    assert score("map_11_points", SCORES, LABELS) == score("map_11_points", SCORES, as_sets)


def test_a_case_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    labels = np.array([0, 0, 1, 1])
    assert score("accuracy", scores, labels) == 3 / 4
    assert score("roc_auc", scores, labels) == 1  # 0.7 and 0.4 for those of the second class, 0.1 and 0.2 for the first
    assert score("mean_per_class", scores, np.array([0, 0, 0, 1])) == pytest.approx((2 / 3 + 0) / 2)
    first, second = 1 / 2, (7 * 1 + 4 * 3 / 4) / 11  # recall 1 at precision 1/2; 2/3 at 1 and 1 at 3/4
    assert score("map_11_points", scores, np.array([1, 0, 1, 1])) == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("sizes", [(6, 6), (3, 9)])
def test_classes_of_which_all_are_right_are_bounded_by_the_least_mean_that_shows_them(sizes: tuple[int, int]) -> None:
    """Of all chances of two classes that show 12 right in 2.5 % of samples; a wider bound where one class is small."""
    low, high = interval_of("mean_per_class", 1.0, np.ones(100), np.repeat([0, 1], sizes), 0.95)
    one, two = np.meshgrid(*2 * [np.linspace(0, 1, 1001)])
    least = ((one + two) / 2)[one ** sizes[0] * two ** sizes[1] >= 0.025].min()
    assert high == 1 and (low == pytest.approx(least, abs=0.001) if sizes == (6, 6) else 0.5 < low < least)


def test_a_class_with_the_same_name_as_the_right_one_is_no_answer() -> None:
    """ImageNet's Chinese names have three twice; their scores differ by rounding."""
    scores = np.array([[0.3, 0.30000001, 0.1]], dtype=np.float32)
    assert [score("accuracy", scores, np.array([label])) for label in (0, 1)] == [0, 0]


@pytest.mark.parametrize(
    ("metric", "scores", "labels", "message"),
    [
        ("accuracy", np.where(np.arange(60)[:, None] == 7, np.nan, SCORES), LABELS, "scores of item 7 hold NaN"),
        ("roc_auc", SCORES, LABELS, "roc_auc compares two classes, and there are 4"),
    ],
)
def test_what_does_not_fit_is_refused(metric: str, scores: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(metric, scores, labels)

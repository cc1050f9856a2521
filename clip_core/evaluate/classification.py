"""Classification scored as the paper's table 11 does: accuracy, mean per class, 11-point mAP, ROC-AUC.

Each metric is computed over weighted items, so that resampling is the same computation with other weights.
"""

from collections.abc import Callable

import numpy as np

from clip_core.errors import UserError
from clip_core.evaluate.bootstrap import bounds_of, draws, intervals

LEVEL = 5e-7  # float32 scores of equal classes differ by less, and six decimals by more
Weighted = Callable[[np.ndarray], np.ndarray]  # weights of items (draws, n) -> the metric of each draw (draws,)
Metric = Callable[[np.ndarray, np.ndarray], Weighted]  # of scores and labels


def score(metric: str, scores: np.ndarray, labels: np.ndarray) -> float:
    """One of METRICS of the `scores` (n, classes), the higher the likelier.

    `labels` are (n,) classes, or (n, classes) bool where an item may have several. ROC-AUC is that of the second of two
    classes. A class equally likely as the right one counts as the answer: a tie is never in favour of the truth.
    """
    _check(metric, scores, labels)
    return float(METRICS[metric](scores, labels)(np.ones((1, len(scores))))[0])


def resampled(metric: str, scores: np.ndarray, labels: np.ndarray, num_bootstrap: int, seed: int) -> np.ndarray:
    """The metric over items drawn with replacement, `num_bootstrap` times; the same items for any scores of as many."""
    _check(metric, scores, labels)
    weighted = METRICS[metric](scores, labels)
    return np.concatenate([weighted(weights) for weights in draws(np.arange(len(scores)), num_bootstrap, seed)])


def interval_of(metric: str, value: float, drawn: np.ndarray, labels: np.ndarray, confidence: float) -> np.ndarray:
    """The (low, high) of the metric's `value`, from what was `resampled` of it.

    Where all items are right, or all wrong, resampling finds no doubt at all: there the other bound is the exact one,
    as `bootstrap.intervals` has it for recalls. In the mean per class each class counts as one of the smallest.
    """
    if metric not in ("accuracy", "mean_per_class") or value not in (0, 1):
        return bounds_of(drawn, confidence)
    sizes = np.unique(labels, return_counts=True)[1]
    num = len(labels) if metric == "accuracy" else len(sizes) * sizes.min()
    return intervals(np.full((num, 1), value), np.arange(num), 1, confidence, 0)[0]


def is_right(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each item's own class alone has its highest score; (n,) bool."""
    rows = np.arange(len(scores))
    others = scores.copy()
    others[rows, labels] = -np.inf
    return scores[rows, labels] > others.max(axis=1) + LEVEL


def _accuracy(scores: np.ndarray, labels: np.ndarray) -> Weighted:
    right = is_right(scores, labels)
    return lambda weights: weights @ right / weights.sum(axis=1)


def _mean_per_class(scores: np.ndarray, labels: np.ndarray) -> Weighted:
    """The mean over the classes that occur of the share of their items that are right."""
    order = np.argsort(labels, kind="stable")
    right, starts = is_right(scores, labels)[order], np.flatnonzero(np.diff(labels[order], prepend=-1))

    def weighted(weights: np.ndarray) -> np.ndarray:
        of_class = np.add.reduceat(weights[:, order], starts, axis=1)
        with np.errstate(invalid="ignore"):  # a class of which no item was drawn
            return np.nanmean(np.add.reduceat(weights[:, order] * right, starts, axis=1) / of_class, axis=1)

    return weighted


def _map_11_points(scores: np.ndarray, labels: np.ndarray) -> Weighted:
    """The mean over classes of the mean, over the recalls 0, 0.1, ... 1, of the best precision from there on.

    Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, 2010, section 4.2. Items of equal score are
    found together.
    """
    is_one = labels if labels.ndim == 2 else labels[:, None] == np.arange(scores.shape[1])
    found = [_ap_11_points(scores[:, place], is_one[:, place]) for place in np.flatnonzero(is_one.any(axis=0))]
    return lambda weights: np.nanmean([weighted(weights) for weighted in found], axis=0)


def _ap_11_points(scores: np.ndarray, is_one: np.ndarray) -> Weighted:
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of those with one score
    ends = ends[np.add.reduceat(is_one[order].astype(int), np.append(0, ends[:-1] + 1)) > 0]  # else precision falls

    def weighted(weights: np.ndarray) -> np.ndarray:
        right = (weights[:, order] * is_one[order]).cumsum(axis=1)[:, ends]
        seen = weights[:, order].cumsum(axis=1)[:, ends]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = np.nan_to_num(right / seen), right / right[:, -1:]
        points = [np.where(recall >= point - 1e-12, precision, 0).max(axis=1) for point in np.linspace(0, 1, 11)]
        return np.where(right[:, -1] > 0, np.mean(points, axis=0), np.nan)  # none drawn

    return weighted


def _roc_auc(scores: np.ndarray, labels: np.ndarray) -> Weighted:
    """How often an item of the second class has a higher score for it than one of the first; an equal one counts half.

    Where all drawn are of one class there is nothing to compare, which counts as chance.
    """
    margin = scores[:, 1].astype(float) - scores[:, 0]
    order = np.argsort(margin, kind="stable")
    starts, is_second = np.flatnonzero(np.diff(margin[order], prepend=-np.inf)), labels[order] == 1

    def weighted(weights: np.ndarray) -> np.ndarray:
        first, second = (np.add.reduceat(weights[:, order] * rows, starts, axis=1) for rows in (~is_second, is_second))
        below = first.cumsum(axis=1) - first / 2
        pairs = first.sum(axis=1) * second.sum(axis=1)
        return np.where(pairs > 0, (second * below).sum(axis=1) / np.maximum(pairs, 1), 0.5)

    return weighted


METRICS: dict[str, Metric] = {
    "accuracy": _accuracy,
    "mean_per_class": _mean_per_class,
    "map_11_points": _map_11_points,
    "roc_auc": _roc_auc,
}


def _check(metric: str, scores: np.ndarray, labels: np.ndarray) -> None:
    assert len(labels) == len(scores) > 0
    if not np.isfinite(scores).all():
        raise UserError(f"the scores of item {np.argmin(np.isfinite(scores).all(axis=1))} hold NaN or infinity")
    if metric == "roc_auc" and scores.shape[1] != 2:
        raise UserError(f"roc_auc compares two classes, and there are {scores.shape[1]}")

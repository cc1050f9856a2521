"""Confidence intervals by resampling queries; those that are not independent are drawn together, as one unit."""

from collections.abc import Iterator

import numpy as np

from clip_core.evaluate.retrieval import Relevant

MAX_DRAWS = 2**22  # in memory at a time


def units_of(right: Relevant) -> np.ndarray:
    """A number for each query, from its right answers: queries of one number are drawn together.

    They are those with the same first right answer. Where each text has one picture, as in Flickr30K, that draws a
    picture with all its captions; where each picture has one text, as in MUGE, a query with all its pictures. A query
    that shares no answer is drawn by itself. There are no chains: a picture that belongs to two queries by accident
    does not make one of them and all that they touch.
    """
    number: dict[int, int] = {}
    return np.array([number.setdefault(int(answers[0]), len(number)) for answers in right], dtype=np.int64)


def intervals(values: np.ndarray, units: np.ndarray, num_bootstrap: int, confidence: float, seed: int) -> np.ndarray:
    """The (low, high) of each column's mean, as a percentile interval over resampled units; shape (columns, 2).

    Values lie between 0 and 1. Where all are 0, or all are 1, resampling finds no doubt at all: there the other bound
    is the exact one of Clopper and Pearson, which is the mean that would show such units in (1 - confidence) / 2 of all
    samples.
    """
    bounds = bounds_of(resampled_means(values, units, num_bootstrap, seed), confidence)
    least = ((1 - confidence) / 2) ** (1 / (1 + units.max()))  # of a share that shows nothing but 1
    bounds[(values == 1).all(axis=0), 0] = least
    bounds[(values == 0).all(axis=0), 1] = 1 - least
    return bounds


def bounds_of(resampled: np.ndarray, confidence: float) -> np.ndarray:
    """The (low, high) between which `confidence` of what was resampled (times, ...) lies; shape (..., 2)."""
    return np.percentile(resampled, [50 * (1 - confidence), 50 * (1 + confidence)], axis=0).T


def compared(value: float, resampled: np.ndarray, confidence: float) -> dict[str, float]:
    """A difference between two models with its interval and p-value, from its values over resampled units.

    Both models must have been resampled by the same units, with the same seed. The p-value is twice the share of
    resamples (and one more) in which the difference has the other sign or is none: where it is below 0.05, the 95 %
    interval does not hold 0 (Efron and Tibshirani, An Introduction to the Bootstrap, 15.4).
    """
    low, high = bounds_of(resampled, confidence)
    fewer = min((resampled <= 0).sum(), (resampled >= 0).sum())
    p_value = min(1.0, 2 * (1 + fewer) / (1 + len(resampled)))
    return {"value": value, "low": float(low), "high": float(high), "p_value": float(p_value)}


def median_rank(ranks: np.ndarray) -> int:
    """The first rank within which half of the queries have their right answer."""
    return int(np.sort(ranks)[(len(ranks) - 1) // 2])


def resampled_median_ranks(ranks: np.ndarray, units: np.ndarray, num_bootstrap: int, seed: int) -> np.ndarray:
    """The `median_rank` over resampled units, `num_bootstrap` times."""
    order = np.argsort(ranks)
    found = []
    for times in draws(units, num_bootstrap, seed):
        reached = times[:, units[order]].cumsum(axis=1)
        found.append(ranks[order][(2 * reached >= reached[:, -1:]).argmax(axis=1)])
    return np.concatenate(found)


def resampled_means(
    values: np.ndarray, units: np.ndarray, num_bootstrap: int, seed: int | tuple[int, ...]
) -> np.ndarray:
    """The columns' means over rows, `num_bootstrap` times; shape (num_bootstrap, columns).

    What is drawn, with replacement, is a unit (from 0) with all its rows.
    """
    sizes = np.bincount(units)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, units, values)
    means = [times @ sums / (times @ sizes)[:, None] for times in draws(units, num_bootstrap, seed)]
    return np.concatenate(means)


def draws(units: np.ndarray, num_bootstrap: int, seed: int | tuple[int, ...]) -> Iterator[np.ndarray]:
    """How often each unit was drawn, some resamples at a time; shape (resamples, units)."""
    rng, num_units = np.random.default_rng(seed), int(units.max()) + 1
    most = max(1, MAX_DRAWS // num_units)
    for start in range(0, num_bootstrap, most):
        count = min(most, num_bootstrap - start)
        drawn = rng.integers(num_units, size=(count, num_units)) + num_units * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * num_units).reshape(count, num_units)

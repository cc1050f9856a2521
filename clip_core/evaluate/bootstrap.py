"""Confidence intervals by resampling queries; those that are not independent are drawn together, as one unit."""

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
    means = resampled_means(values, units, num_bootstrap, seed)
    bounds = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)], axis=0).T
    least = ((1 - confidence) / 2) ** (1 / (1 + units.max()))  # of a share that shows nothing but 1
    bounds[(values == 1).all(axis=0), 0] = least
    bounds[(values == 0).all(axis=0), 1] = 1 - least
    return bounds


def resampled_means(
    values: np.ndarray, units: np.ndarray, num_bootstrap: int, seed: int | tuple[int, ...]
) -> np.ndarray:
    """The columns' means over rows, `num_bootstrap` times; shape (num_bootstrap, columns).

    What is drawn, with replacement, is a unit (from 0) with all its rows.
    """
    rng, sizes = np.random.default_rng(seed), np.bincount(units)
    num_units, sums = len(sizes), np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, units, values)
    means = np.empty((num_bootstrap, values.shape[1]))
    most = max(1, MAX_DRAWS // num_units)
    for start in range(0, num_bootstrap, most):
        count = min(most, num_bootstrap - start)
        drawn = rng.integers(num_units, size=(count, num_units)) + num_units * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * num_units).reshape(count, num_units)
        means[start : start + count] = times @ sums / (times @ sizes)[:, None]
    return means

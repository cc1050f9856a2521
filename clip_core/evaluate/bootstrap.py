"""Confidence intervals by resampling queries."""

import numpy as np

MAX_DRAWS = 2**22  # in memory at a time


def intervals(values: np.ndarray, num_bootstrap: int, confidence: float, seed: int) -> np.ndarray:
    """The (low, high) of each column's mean, as a percentile interval over resampled rows; shape (columns, 2).

    Values lie between 0 and 1. Where all are 0, or all are 1, resampling finds no doubt at all: there the other bound
    is the exact one of Clopper and Pearson, which is the mean that would show such rows in (1 - confidence) / 2 of all
    samples.
    """
    means = resampled_means(values, num_bootstrap, seed)
    bounds = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)], axis=0).T
    least = ((1 - confidence) / 2) ** (1 / len(values))  # of a share that shows nothing but 1
    bounds[(values == 1).all(axis=0), 0] = least
    bounds[(values == 0).all(axis=0), 1] = 1 - least
    return bounds


def resampled_means(values: np.ndarray, num_bootstrap: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """The columns' means over rows drawn with replacement, `num_bootstrap` times; shape (num_bootstrap, columns)."""
    rng, (num_rows, num_columns) = np.random.default_rng(seed), values.shape
    means = np.empty((num_bootstrap, num_columns))
    size = max(1, MAX_DRAWS // num_rows)
    for start in range(0, num_bootstrap, size):
        count = min(size, num_bootstrap - start)
        drawn = rng.integers(num_rows, size=(count, num_rows)) + num_rows * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * num_rows).reshape(count, num_rows)
        means[start : start + count] = times @ values / num_rows
    return means

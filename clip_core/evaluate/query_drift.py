"""Whether what is asked now is of another kind than before: one decision about all that is compared."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

NUM_BINS = 10
NUM_ORDERS = 999  # so with five checks the least p-value is half a percent


class Check(NamedTuple):
    """What one column says."""

    name: str
    value: float  # how far: MMD of the features, PSI of the others
    p_value: float  # by itself


class Verdict(NamedTuple):
    """Of two sets of queries."""

    p_value: float  # of all checks together
    has_drifted: bool
    checks: tuple[Check, ...]


def judge(before: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray], false_alarms: float, seed: int) -> Verdict:
    """Compares queries, given as columns: `features` (n, embed_dim) and facts (n,), the same names in both.

    A permutation test: if both are of one kind, any order in which they might have come is as likely as the true one.
    Each check ranks the orders by how far apart it finds the two parts; an order's best rank in any check, ranked among
    those of all orders, is the p-value. So at most `false_alarms` of such pairs are told apart, whatever the queries
    look like, however many checks there are and however they depend on each other (Westfall and Young's min-P).
    """
    num_before = len(before["features"])
    num = num_before + len(now["features"])
    is_now = np.zeros((1 + NUM_ORDERS, num), dtype=np.float32)
    is_now[:, num_before:] = 1
    is_now[1:] = np.random.default_rng(seed).permuted(is_now[1:], axis=1)
    both = {name: np.concatenate([before[name], now[name]]).astype(np.float64) for name in before}
    found = {
        name: discrepancy(values, is_now) if name == "features" else stability_index(values, is_now)
        for name, values in both.items()
    }
    distances = np.stack([*found.values()], axis=1)  # (orders, checks)
    ordered = np.sort(distances, axis=0)
    as_far = [len(distances) - np.searchsorted(ordered[:, i], distances[:, i]) for i in range(distances.shape[1])]
    ranks = np.stack(as_far, axis=1) / len(distances)
    best = ranks.min(axis=1)
    p_value = float((best <= best[0]).mean())
    checks = zip(found, distances[0].tolist(), ranks[0].tolist(), strict=True)
    return Verdict(p_value, p_value <= false_alarms, tuple(Check(*check) for check in checks))


def stability_index(values: np.ndarray, is_now: np.ndarray) -> np.ndarray:
    """For each order (a row of `is_now`) the PSI of its two parts, (orders,), over bins that hold a tenth of all each.

    As in data/drift.py half a value is added to each bin.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, values)
    is_in = (bins[:, None] == np.arange(len(edges) + 1)).astype(np.float32)
    now = (is_now @ is_in).astype(np.float64)
    shares = [counts / counts.sum(axis=1, keepdims=True) for counts in (now + 0.5, is_in.sum(axis=0) - now + 0.5)]
    return ((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum(axis=1)


def discrepancy(features: np.ndarray, is_now: np.ndarray) -> np.ndarray:
    """For each order the squared maximum mean discrepancy of its two parts, (orders,).

    The kernel is exp(-d^2 / the median d^2): it sees any difference of two distributions, not of their means alone.
    """
    lengths = (features**2).sum(axis=1)
    squares = np.maximum(lengths[:, None] + lengths - 2 * features @ features.T, 0)
    near = np.exp(-squares / max(float(np.median(squares)), 1e-9)).astype(np.float32)
    sums = near.sum(axis=1, dtype=np.float64)
    within = ((is_now @ near) * is_now).sum(axis=1, dtype=np.float64)
    with_all = is_now @ sums
    now = is_now.sum(axis=1)
    before = is_now.shape[1] - now
    others = sums.sum() - 2 * with_all + within
    return within / now**2 + others / before**2 - 2 * (with_all - within) / (now * before)

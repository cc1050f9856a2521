"""Drift of queries: what has not changed is left in peace, and what has is seen."""

import numpy as np
import pytest

from clip_core.data.drift import population_stability_index
from clip_core.evaluate.query_drift import discrepancy, judge, stability_index

FALSE_ALARMS = 0.01
WIDTH = 16
TOPICS = np.random.default_rng(7).normal(size=(12, WIDTH))


def asked(rng: np.random.Generator, num: int, **changes: float) -> dict[str, np.ndarray]:
    """Queries about a dozen topics, which `changes` turns into another kind."""
    kind = {"topics": 12, "length": 6.0, "unknown": 0.02, "empty": 0.01, "score": 0.4} | changes
    features = TOPICS[rng.integers(0, int(kind["topics"]), num)] + rng.normal(size=(num, WIDTH))
    return {
        "length": 1.0 + rng.poisson(kind["length"], num),
        "unknown characters": rng.binomial(8, kind["unknown"], num) / 8,
        "empty answer": (rng.random(num) < kind["empty"]).astype(float),
        "best score": rng.normal(kind["score"], 0.1, num),
        "features": (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16),
    }


def test_of_windows_of_the_same_kind_at_most_one_in_a_hundred_is_an_alarm() -> None:
    rng, tries = np.random.default_rng(1), 500
    alarms = sum(judge(asked(rng, 60), asked(rng, 40), FALSE_ALARMS, seed).has_drifted for seed in range(tries))
    assert alarms <= 10, alarms  # at 1 in 100 more than 10 of 500 come once in 75 times


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"topics": 6}, "features"),
        ({"length": 9.0}, "length"),
        ({"unknown": 0.1}, "unknown characters"),
        ({"empty": 0.15}, "empty answer"),
        ({"score": 0.33}, "best score"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_kind_of_queries_is_seen_and_named(changes: dict, by: str) -> None:
    rng = np.random.default_rng(2)
    for seed in range(3):
        verdict = judge(asked(rng, 300), asked(rng, 200, **changes), FALSE_ALARMS, seed)
        assert verdict.has_drifted, verdict
        assert min(verdict.checks, key=lambda check: check.p_value).name == by


def test_the_same_queries_always_get_the_same_verdict() -> None:
    before, now = asked(np.random.default_rng(3), 80), asked(np.random.default_rng(4), 50)
    assert judge(before, now, FALSE_ALARMS, 1) == judge(before, now, FALSE_ALARMS, 1)


def test_the_distances_are_those_of_the_textbook() -> None:
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.normal(size=70), rng.normal(1, 1, size=30)])
    is_now = np.zeros((1, 100), dtype=np.float32)
    is_now[0, 70:] = 1
    bins = np.searchsorted(np.quantile(values, np.linspace(0, 1, 11)[1:-1]), values)
    counts = [np.bincount(part, minlength=10).tolist() for part in (bins[70:], bins[:70])]
    assert stability_index(values, is_now)[0] == pytest.approx(population_stability_index(*counts))

    points = rng.normal(size=(100, 3))
    squares = ((points[:, None] - points) ** 2).sum(-1)
    kernel = np.exp(-squares / np.median(squares))
    slow = kernel[70:, 70:].mean() + kernel[:70, :70].mean() - 2 * kernel[:70, 70:].mean()
    assert discrepancy(points, is_now)[0] == pytest.approx(slow, rel=1e-4)

"""Confidence intervals: what they cover, and that they repeat."""

import numpy as np
import pytest
from scipy.stats import binomtest

from clip_core.evaluate import bootstrap
from clip_core.evaluate.bootstrap import intervals, resampled_means


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    hits = (np.arange(1000) < 200).astype(float)[:, None]
    low, high = intervals(hits, num_bootstrap=4000, confidence=0.95, seed=1)[0]
    width = 1.96 * np.sqrt(0.2 * 0.8 / 1000)
    assert (low, high) == (pytest.approx(0.2 - width, abs=0.003), pytest.approx(0.2 + width, abs=0.003))


def test_a_95_percent_interval_holds_the_truth_about_95_times_in_100() -> None:
    rng, held = np.random.default_rng(2), 0
    for trial in range(400):
        low, high = intervals((rng.random((300, 1)) < 0.3).astype(float), 300, confidence=0.95, seed=trial)[0]
        held += low <= 0.3 <= high
    assert 0.91 <= held / 400 <= 0.98


def test_resampled_means_equal_the_slow_loop() -> None:
    values = np.random.default_rng(3).random((17, 3))
    drawn = np.random.default_rng(4).integers(17, size=(50, 17))
    expected = [values[row].mean(axis=0) for row in drawn]
    np.testing.assert_allclose(resampled_means(values, 50, seed=4), expected)


def test_the_same_seed_gives_the_same_interval_however_it_is_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random((40, 2))
    whole = intervals(values, 200, confidence=0.9, seed=6)
    monkeypatch.setattr(bootstrap, "MAX_DRAWS", 130)
    np.testing.assert_array_equal(intervals(values, 200, confidence=0.9, seed=6), whole)
    assert (intervals(values, 200, confidence=0.9, seed=7) != whole).any()


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("num_queries", [1, 9, 166])
def test_queries_that_are_all_wrong_or_all_right_have_the_exact_bound(num_queries: int, confidence: float) -> None:
    values = np.repeat([[0.0, 1.0]], num_queries, axis=0)
    wrong, right = intervals(values, 100, confidence, seed=1)
    exact = binomtest(0, num_queries).proportion_ci(confidence, method="exact")
    assert wrong.tolist() == pytest.approx([0, exact.high])
    assert right.tolist() == pytest.approx([1 - exact.high, 1])
    # A share of `high` would show queries that are all wrong in one half of the samples outside the confidence.
    assert (1 - wrong[1]) ** num_queries == pytest.approx((1 - confidence) / 2)


def test_queries_that_all_have_one_other_value_have_an_interval_of_no_width() -> None:
    assert intervals(np.full((9, 1), 0.5), 100, confidence=0.95, seed=1).tolist() == [[0.5, 0.5]]

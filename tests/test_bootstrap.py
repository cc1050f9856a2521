"""Confidence intervals: what they cover, and that they repeat."""

import numpy as np
import pytest
from scipy.stats import binomtest

from clip_core.evaluate import bootstrap
from clip_core.evaluate.bootstrap import (
    compared,
    intervals,
    median_rank,
    resampled_means,
    resampled_median_ranks,
    units_of,
)


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    hits = (np.arange(1000) < 200).astype(float)[:, None]
    low, high = intervals(hits, np.arange(1000), num_bootstrap=4000, confidence=0.95, seed=1)[0]
    width = 1.96 * np.sqrt(0.2 * 0.8 / 1000)
    assert (low, high) == (pytest.approx(0.2 - width, abs=0.003), pytest.approx(0.2 + width, abs=0.003))


def test_a_95_percent_interval_holds_the_truth_about_95_times_in_100() -> None:
    rng, held = np.random.default_rng(2), 0
    for trial in range(400):
        low, high = intervals((rng.random((300, 1)) < 0.3).astype(float), np.arange(300), 300, 0.95, seed=trial)[0]
        held += low <= 0.3 <= high
    assert 0.91 <= held / 400 <= 0.98


def test_resampled_means_equal_the_slow_loop() -> None:
    values = np.random.default_rng(3).random((17, 3))
    drawn = np.random.default_rng(4).integers(17, size=(50, 17))
    expected = [values[row].mean(axis=0) for row in drawn]
    np.testing.assert_allclose(resampled_means(values, np.arange(17), 50, seed=4), expected)


def test_resampled_units_equal_the_slow_loop_over_units_of_unequal_size() -> None:
    values, units = (
        np.random.default_rng(3).random((17, 3)),
        np.array([0, 0, 0, 1, 2, 2, 0, 3, 3, 3, 3, 4, 1, 1, 0, 4, 4]),
    )
    drawn = np.random.default_rng(4).integers(5, size=(50, 5))
    expected = [np.concatenate([values[units == unit] for unit in row]).mean(axis=0) for row in drawn]
    np.testing.assert_allclose(resampled_means(values, units, 50, seed=4), expected)


def test_queries_with_the_same_first_answer_are_one_unit_and_others_their_own() -> None:
    five_captions_each = [[7]] * 5 + [[3]] * 5
    assert units_of(five_captions_each).tolist() == [0] * 5 + [1] * 5
    own_pictures_each = [[6, 7, 8], [0, 1, 2], [3, 4, 5]]
    assert units_of(own_pictures_each).tolist() == [0, 1, 2]  # in their order: drawn as if there were no units
    assert units_of([[0, 5], [1, 5], [1], [2, 0]]).tolist() == [0, 1, 1, 2]  # no chain from the first to the last


def share_that_holds_the_truth(sizes: np.ndarray, right: list[list[int]], wide: float) -> float:
    """In how many of 400 data sets the 95 % interval holds 0.5, the share of hits.

    Queries come in lots of `sizes`. What they ask is as hard for all in a lot: a hit has the lot's own chance, which is
    drawn from a Beta distribution, the wider the smaller `wide`.
    """
    rng, held = np.random.default_rng(5), 0
    for trial in range(400):
        hits = rng.random(sizes.sum()) < np.repeat(rng.beta(wide, wide, len(sizes)), sizes)
        low, high = intervals(hits.astype(float)[:, None], units_of(right), 300, 0.95, seed=trial)[0]
        held += low <= 0.5 <= high
    return held / 400


def test_the_interval_holds_the_truth_where_five_captions_belong_to_one_picture() -> None:
    """As in Flickr30K and COCO. Captions as independent queries: in 80 % of the data sets."""
    captions = np.full(200, 5)
    by_text = [[picture] for picture in np.repeat(np.arange(200), captions)]
    assert 0.93 <= share_that_holds_the_truth(captions, by_text, wide=1) <= 0.97


def test_the_interval_holds_the_truth_where_a_query_has_about_six_pictures() -> None:
    """As in MUGE. Text to image was right before; image to text, with pictures as independent, in 72 %."""
    pictures = np.random.default_rng(6).integers(1, 12, 200)
    first = np.cumsum(pictures) - pictures
    by_text = [list(range(start, start + count)) for start, count in zip(first, pictures, strict=True)]
    by_picture = [[text] for text in np.repeat(np.arange(200), pictures)]
    assert 0.93 <= share_that_holds_the_truth(np.full(200, 1), by_text, wide=1) <= 0.97
    assert 0.93 <= share_that_holds_the_truth(pictures, by_picture, wide=1) <= 0.97


def test_the_same_seed_gives_the_same_interval_however_it_is_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random((40, 2))
    whole = intervals(values, np.arange(40), 200, confidence=0.9, seed=6)
    monkeypatch.setattr(bootstrap, "MAX_DRAWS", 130)
    np.testing.assert_array_equal(intervals(values, np.arange(40), 200, confidence=0.9, seed=6), whole)
    assert (intervals(values, np.arange(40), 200, confidence=0.9, seed=7) != whole).any()


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("num_queries", [1, 9, 166])
def test_queries_that_are_all_wrong_or_all_right_have_the_exact_bound(num_queries: int, confidence: float) -> None:
    values = np.repeat([[0.0, 1.0]], num_queries, axis=0)
    wrong, right = intervals(values, np.arange(num_queries), 100, confidence, seed=1)
    exact = binomtest(0, num_queries).proportion_ci(confidence, method="exact")
    assert wrong.tolist() == pytest.approx([0, exact.high])
    assert right.tolist() == pytest.approx([1 - exact.high, 1])
    # A share of `high` would show queries that are all wrong in one half of the samples outside the confidence.
    assert (1 - wrong[1]) ** num_queries == pytest.approx((1 - confidence) / 2)


def test_captions_that_are_all_right_are_as_many_as_their_pictures() -> None:
    (bounds,) = intervals(np.ones((45, 1)), np.repeat(np.arange(9), 5), 100, confidence=0.95, seed=1)
    assert bounds.tolist() == pytest.approx([binomtest(9, 9).proportion_ci(0.95, method="exact").low, 1])


def test_queries_that_all_have_one_other_value_have_an_interval_of_no_width() -> None:
    assert intervals(np.full((9, 1), 0.5), np.arange(9), 100, confidence=0.95, seed=1).tolist() == [[0.5, 0.5]]


def test_resampled_median_ranks_equal_the_slow_loop() -> None:
    ranks = np.random.default_rng(8).integers(1, 9, 17)
    units = np.array([0, 0, 0, 1, 2, 2, 0, 3, 3, 3, 3, 4, 1, 1, 0, 4, 4])
    drawn = np.random.default_rng(4).integers(5, size=(50, 5))
    expected = [median_rank(np.concatenate([ranks[units == unit] for unit in row])) for row in drawn]
    assert resampled_median_ranks(ranks, units, 50, seed=4).tolist() == expected
    assert (median_rank(np.array([9, 1, 2])), median_rank(np.array([9, 1, 2, 3]))) == (2, 2)


def difference(ours: np.ndarray, theirs: np.ndarray, seed: int = 1) -> dict[str, float]:
    values = ours.astype(float) - theirs
    means = resampled_means(values[:, None], np.arange(len(values)), 1000, seed)[:, 0]
    return compared(values.mean(), means, confidence=0.95)


def test_the_p_value_of_equal_models_is_below_five_percent_in_one_of_twenty_comparisons() -> None:
    rng = np.random.default_rng(9)
    found = [difference(*(rng.random((2, 300)) < 0.4), seed) for seed in range(400)]
    assert 0.03 <= np.mean([one["p_value"] < 0.05 for one in found]) <= 0.08
    for one in found:  # the interval and the p-value say the same
        assert (one["p_value"] < 0.05) == (one["low"] > 0 or one["high"] < 0) or 0.04 < one["p_value"] < 0.06


def test_a_model_that_is_right_on_the_same_queries_and_some_more_is_above() -> None:
    """Paired: unpaired, ten queries of a thousand are no difference."""
    theirs = np.arange(1000) < 400
    found = difference(np.arange(1000) < 410, theirs)
    assert found["value"] == pytest.approx(0.01)
    assert 0 < found["low"] < found["value"] < found["high"]
    assert found["p_value"] == pytest.approx(2 / 1001)
    assert difference(theirs, theirs)["p_value"] == 1

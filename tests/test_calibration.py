"""From cosines to the probability of a match: the fit, what it means, and who carries and gives it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import clip_core
from clip_core.evaluate.benchmark import Benchmark, read_benchmark
from clip_core.evaluate.embed import Features, embed
from clip_core.evaluate.reliability import calibrate
from clip_core.inference.calibration import (
    CALIBRATION_FILE,
    NUM_BINS,
    Calibration,
    bin_of,
    cosine_of_bins,
    fit,
    read_calibration,
    sigmoid,
)
from clip_core.model.contract import weights_id
from clip_core.serve.pictures import INDEXES
from tests.page_server import StandIn, Supervised, page_of, standing_in
from tests.tiny_release import TOP_K, Release


def made(slope: float = 20.0, intercept: float = -12.0, weights: str = "w") -> Calibration:
    return Calibration(weights=weights, slope=slope, intercept=intercept, num_candidates=101, matches=1.0)


def test_the_fit_finds_the_curve_that_the_pairs_were_drawn_from() -> None:
    rng = np.random.default_rng(1)
    cosines = rng.normal(0.3, 0.15, 200_000).clip(-1, 1)
    matches = rng.random(len(cosines)) < sigmoid(25 * cosines - 14)
    matched, unmatched = (np.bincount(bin_of(cosines[rows]), minlength=NUM_BINS) for rows in (matches, ~matches))
    slope, intercept = fit(matched, unmatched)
    assert (slope, intercept) == (pytest.approx(25, rel=0.03), pytest.approx(-14, rel=0.03))


def test_the_fit_is_where_the_likelihood_is_flat() -> None:
    """The two equations of a logistic regression: as many matches as expected, also weighted by the cosine."""
    rng = np.random.default_rng(2)
    matched, unmatched = rng.integers(0, 5, NUM_BINS), rng.integers(0, 50, NUM_BINS)
    matched[: NUM_BINS // 2] = 0
    slope, intercept = fit(matched, unmatched)
    expected = (matched + unmatched) * sigmoid(slope * cosine_of_bins() + intercept)
    assert expected.sum() == pytest.approx(matched.sum(), rel=1e-3)
    assert (expected * cosine_of_bins()).sum() == pytest.approx((matched * cosine_of_bins()).sum(), rel=1e-3)


def test_a_model_without_a_mistake_and_one_that_knows_nothing_have_finite_curves() -> None:
    low, high = np.zeros((2, NUM_BINS))
    low[1000], high[15000] = 900, 30
    slope, intercept = fit(high, low)
    assert np.isfinite([slope, intercept]).all() and slope > 0
    assert sigmoid(slope * cosine_of_bins()[[1000, 15000]] + intercept) == pytest.approx([0, 1], abs=0.05)
    assert sigmoid(np.dot(fit(low, low), [cosine_of_bins()[1000], 1])) == pytest.approx(0.5)


def test_among_more_pictures_a_cosine_means_less() -> None:
    """With ten times as many wrong pictures the odds are a tenth."""
    calibration = made()
    cosines = np.array([0.5, 0.6, 0.7])
    as_fitted = calibration.probability(cosines)
    assert as_fitted == pytest.approx(1 / (1 + np.exp(12 - 20 * cosines)))
    assert calibration.probability(cosines, 101) == pytest.approx(as_fitted)
    more = calibration.probability(cosines, 1001)
    assert more / (1 - more) == pytest.approx(as_fitted / (1 - as_fitted) / 10)


def noisy(num: int, seed: int) -> tuple[Features, Benchmark]:
    """As many texts and pictures; a text is its picture and noise."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(num, 16))
    texts = images + rng.normal(scale=0.9, size=images.shape)
    images, texts = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (images, texts))
    names = [str(i) for i in range(num)]
    seen, pairs = np.ones(num, dtype=bool), np.repeat(np.arange(num), 2).reshape(-1, 2)
    benchmark = Benchmark(names, names, seen, ~seen, names, seen, [None] * num, pairs)
    return Features(texts, images, [], np.empty((0, 0))), benchmark


def test_of_the_pairs_with_a_probability_so_many_match() -> None:
    calibration, bins = calibrate(*noisy(600, seed=3), "w")
    assert (calibration.num_candidates, calibration.matches) == (600, 1.0)
    assert sum(row["count"] for row in bins) == 600 * 600
    assert all(row["low"] <= row["mean_probability"] <= row["high"] for row in bins)
    for row in bins:
        spread = (row["mean_probability"] * (1 - row["mean_probability"]) / row["count"]) ** 0.5
        assert row["share_matched"] == pytest.approx(row["mean_probability"], abs=4 * spread + 0.05)
    features, _ = noisy(600, seed=4)  # others of the same kind
    probability = calibration.probability(features.texts @ features.images.T)
    for low, high in ((0.1, 0.3), (0.3, 0.6), (0.6, 1)):
        rows = (probability >= low) & (probability < high)
        assert np.eye(600)[rows].mean() == pytest.approx(probability[rows].mean(), abs=0.1)


def test_the_pairs_are_those_of_the_slow_loop() -> None:
    features, benchmark = noisy(40, seed=5)
    scores = features.texts @ features.images.T
    is_pair = np.eye(40, dtype=bool)
    slope, intercept = fit(*(np.bincount(bin_of(scores[rows]), minlength=NUM_BINS) for rows in (is_pair, ~is_pair)))
    calibration, _ = calibrate(features, benchmark, "w")
    assert (calibration.slope, calibration.intercept) == (pytest.approx(slope), pytest.approx(intercept))


def test_one_text_alone_has_a_curve_and_no_diagram() -> None:
    features, benchmark = noisy(1, seed=6)
    assert calibrate(features, benchmark, "w")[1] == []


def test_export_and_release_carry_it_and_the_predictor_gives_it(release: Release, tmp_path: Path) -> None:
    from clip_core.serve.assemble import Gallery, assemble
    from clip_core.serve.gallery import TRITON

    weights = weights_id(release.model)
    with pytest.raises(ValueError, match=f"the model {weights} has no calibration.json: `dvc repro evaluate`"):
        clip_core.load(release.model).match_probability(np.array([0.5]))
    predictor, benchmark = clip_core.load(release.model), read_benchmark(release.store)
    calibration, _ = calibrate(embed(predictor, release.store, benchmark, ("{}",)), benchmark, weights)
    onnx, folder = tmp_path / "onnx", tmp_path / "release"
    shutil.copytree(release.onnx, onnx)
    (onnx / CALIBRATION_FILE).write_text(calibration.model_dump_json(), encoding="utf-8")
    loaded = clip_core.load(onnx, runtime="onnx")
    assert loaded.match_probability(np.array([0.5]), 7).tolist() == calibration.probability(np.array([0.5]), 7).tolist()
    folder.mkdir()
    gallery = Gallery(release.store.folder, release.index)
    assert assemble(onnx, {"test": gallery}, release.golden, TOP_K, TRITON, folder) != release.id
    assert read_calibration(folder, weights) == calibration


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            made(weights="0123").model_dump_json(),
            "fitted to the cosines of weights 0123, not of .* fit it again",
        ),
        ('{"slope": 1}', "not a calibration"),
        ("\x00", "not a calibration"),
    ],
)
def test_one_of_other_weights_or_broken_is_refused(
    release: Release, tmp_path: Path, content: str, message: str
) -> None:
    shutil.copytree(release.model, tmp_path / "model")
    (tmp_path / "model" / CALIBRATION_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        clip_core.load(tmp_path / "model")


@pytest.mark.parametrize("is_calibrated", [True, False])
def test_a_search_answers_with_probabilities_where_the_release_has_them(
    release: Release, tmp_path: Path, is_calibrated: bool
) -> None:
    served, ids = "0123456789abcdef", list(release.store.image_ids[:2])
    (tmp_path / served / "galleries").mkdir(parents=True)
    (tmp_path / served / "galleries" / "test").symlink_to(release.store.folder)
    (tmp_path / served / INDEXES).mkdir(parents=True)
    (tmp_path / served / INDEXES / "test").symlink_to(release.index)
    if is_calibrated:
        (tmp_path / served / CALIBRATION_FILE).write_text(made().model_dump_json(), encoding="utf-8")
    stand_in = StandIn()
    stand_in.answer = lambda _inputs, _context: {"ids": ids, "scores": [0.7, 0.1], "release": served}
    with standing_in(stand_in) as address, page_of(Supervised(address), tmp_path) as client:
        hits = json.loads(client.get("/api/search", params={"text": "猫"}).text)["hits"]
    found = [hit["probability"] for hit in hits]
    expected = made().probability(np.array([0.7, 0.1]), len(release.store))
    assert found == (pytest.approx(expected, abs=1e-4) if is_calibrated else [None, None])

"""What a benchmark says of the probability that a text and a picture match: the fitted curve, and how true it is."""

import numpy as np

from clip_core.evaluate.benchmark import Benchmark, questions
from clip_core.evaluate.embed import Features
from clip_core.inference.calibration import NUM_BINS, Calibration, bin_of, cosine_of_bins, fit, sigmoid
from clip_core.inference.nearest import Scores, top_k

EDGES = np.linspace(0, 1, 11)  # of the diagram's bins


def calibrate(features: Features, benchmark: Benchmark, weights: str) -> tuple[Calibration, list[dict[str, float]]]:
    """The curve over all pairs of a text that asks and a picture, and the bins of its reliability diagram.

    A bin's pairs are judged by a curve that was fitted without their texts: every other text, and those between.
    """
    asked = questions(benchmark, "all")
    halves = np.zeros((2, 2, NUM_BINS))  # half of the texts, matched or not
    for half in range(2):
        texts, right = asked.asking_texts[half::2], asked.right_images[half::2]
        if len(texts):
            halves[half] = _counts(features.texts[texts], features.images, right)
    matched, unmatched = halves.sum(axis=0)
    slope, intercept = fit(matched, unmatched)
    calibration = Calibration(
        weights=weights,
        slope=slope,
        intercept=intercept,
        num_candidates=len(asked.images),
        matches=matched.sum() / len(asked.asking_texts),
    )
    return calibration, _bins(halves)


def _counts(texts: np.ndarray, images: np.ndarray, right: list[np.ndarray]) -> np.ndarray:
    """How many matched and other pairs are in each bin of cosines."""
    all_pairs = np.zeros(NUM_BINS)

    def count(_rows: slice, _columns: slice, scores: Scores) -> None:
        all_pairs[:] += np.bincount(bin_of(scores).ravel(), minlength=NUM_BINS)

    top_k(images, texts, 0, count, device="cpu")
    cosines = [images[places] @ text for text, places in zip(texts, right, strict=True)]
    matched = np.bincount(bin_of(np.concatenate(cosines)), minlength=NUM_BINS)
    return np.stack([matched, np.maximum(all_pairs - matched, 0)])  # a rounding apart at an edge


def _bins(halves: np.ndarray) -> list[dict[str, float]]:
    if not halves[:, 0].any(axis=1).all():
        return []  # a single text: no half to fit on
    counts, sums = np.zeros((2, len(EDGES) - 1)), np.zeros(len(EDGES) - 1)
    for fitted, judged in ((0, 1), (1, 0)):
        slope, intercept = fit(*halves[fitted])
        probability = sigmoid(slope * cosine_of_bins() + intercept)
        place = np.minimum(np.searchsorted(EDGES, probability, side="right") - 1, len(EDGES) - 2)
        for row in range(2):
            counts[row] += np.bincount(place, halves[judged, row], len(EDGES) - 1)
        sums += np.bincount(place, halves[judged].sum(axis=0) * probability, len(EDGES) - 1)
    pairs = counts.sum(axis=0)
    return [
        {
            "low": round(float(EDGES[i]), 1),
            "high": round(float(EDGES[i + 1]), 1),
            "mean_probability": float(sums[i] / pairs[i]),
            "share_matched": float(counts[0, i] / pairs[i]),
            "count": int(pairs[i]),
        }
        for i in np.flatnonzero(pairs)
    ]

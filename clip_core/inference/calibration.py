"""How to read a score: from the cosine of a text and a picture to the probability that they match.

Cosines are no probabilities: with one model a match has 0.3, with another 0.8. So a logistic curve is fitted to the
cosines of all pairs of a text and a picture of a benchmark (Platt, Probabilistic Outputs for Support Vector Machines,
1999). What it gives is how many of all pairs with this cosine match, when a text searches among as many pictures as
there; the prior is theirs: the share of all pairs that match. Among more pictures more fit by accident, so a cosine
means less; `probability` takes that into account, supposing that each text still has as many matches.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from clip_core.config.section import Count, Section
from clip_core.errors import UserError

CALIBRATION_FILE = "calibration.json"
REMEDY = "Remove the file, or fit it again: `dvc repro evaluate`"
NUM_BINS = 2**14  # of cosines, from -1 to 1
STEPS = 100
ENOUGH = 1e-10  # of the loss, in a step


class Calibration(Section):
    """The content of `calibration.json`."""

    format: Literal["clip_calibration/1"] = "clip_calibration/1"
    weights: str  # weights_id of the model whose cosines these are
    slope: float
    intercept: float
    num_candidates: Count  # pictures that each text was compared with
    matches: Annotated[float, Field(gt=0)]  # that a text has among them, in the mean

    def probability(self, cosines: np.ndarray, num_candidates: int | None = None) -> np.ndarray:
        """The probability that each pair matches, when a text searches `num_candidates` pictures; None: as fitted."""
        odds = self.slope * np.asarray(cosines, dtype=np.float64) + self.intercept
        if num_candidates is not None:
            wrong, its_wrong = (max(1.0, num - self.matches) for num in (self.num_candidates, num_candidates))
            odds += np.log(wrong / its_wrong)
        return sigmoid(odds)

    def of_labels(self, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """That each label (the last axis) is right: whatever the others are, and its share if just one of them is.

        The odds of a label are exp(slope * cosine + b); if just one is right, each is it by its share of all odds.
        """
        odds = np.exp(self.slope * (cosines - cosines.max(axis=-1, keepdims=True)).astype(np.float64))
        return self.probability(cosines, cosines.shape[-1]), odds / odds.sum(axis=-1, keepdims=True)


def sigmoid(odds: np.ndarray) -> np.ndarray:
    """The probability of each logarithm of odds."""
    return np.exp(-np.logaddexp(0, -odds))


def bin_of(cosines: np.ndarray) -> np.ndarray:
    """The bin, one of NUM_BINS, of each cosine."""
    return ((np.clip(cosines, -1, 1) + 1) * ((NUM_BINS - 1) / 2) + 0.5).astype(np.int64)


def cosine_of_bins() -> np.ndarray:
    """The cosine in the middle of each bin."""
    return np.linspace(-1, 1, NUM_BINS)


def fit(matched: np.ndarray, unmatched: np.ndarray) -> tuple[float, float]:
    """The slope and intercept of the logistic curve that is likeliest, from how many pairs are in each bin.

    By Newton's method, with Platt's targets: they keep the curve finite where no unmatched pair is above a matched one.
    """
    cosines, num_matched, num_unmatched = cosine_of_bins(), matched.sum(), unmatched.sum()
    pairs = matched + unmatched
    targets = matched * ((num_matched + 1) / (num_matched + 2)) + unmatched / (num_unmatched + 2)
    inputs = np.stack([cosines, np.ones_like(cosines)])
    curve = np.array([0.0, np.log((num_matched + 1) / (num_unmatched + 1))])

    def loss(curve: np.ndarray) -> float:
        odds = curve @ inputs
        return float((pairs * np.logaddexp(0, odds) - targets * odds).sum() / num_matched)

    now = loss(curve)
    for _ in range(STEPS):
        found = sigmoid(curve @ inputs)
        gradient = inputs @ (pairs * found - targets)
        curvature = (inputs * (pairs * found * (1 - found))) @ inputs.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while (then := loss(curve - step)) > now and np.abs(step).max() > ENOUGH:
            step /= 2
        if now - then < ENOUGH:
            break
        curve, now = curve - step, then
    return float(curve[0]), float(curve[1])


def read_calibration(folder: Path, weights: str | None) -> Calibration | None:
    """The calibration in the folder, None where there is none; UserError when it is not that of `weights`.

    None: of a release, which holds what belongs together.
    """
    file = folder / CALIBRATION_FILE
    if not file.exists():
        return None
    try:
        found = Calibration.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a calibration: {error}. {REMEDY}") from None
    if weights not in (None, found.weights):
        raise UserError(f"{file}: fitted to the cosines of weights {found.weights}, not of {weights}. {REMEDY}")
    return found

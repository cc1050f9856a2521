"""One model's figures on one benchmark, with intervals, and what tells two models apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_core.config.evaluation import Evaluate
from clip_core.evaluate.answers import retrieval_answers
from clip_core.evaluate.benchmark import Benchmark, questions
from clip_core.evaluate.benchmarks.described import Metric, Way
from clip_core.evaluate.bootstrap import intervals, resampled_means
from clip_core.evaluate.classification import score
from clip_core.evaluate.measure import entry_of, mean_of_both_ways
from clip_core.inference.prompts import unit

MAX_RANKED = 300  # resamples of a metric that has to be ranked again each time


@dataclass(frozen=True)
class Measured:
    """The metrics (value, low, high, chance), and the resampled values of those in which models are compared.

    The same benchmark, seed and number of resamples draw the same pictures or queries for every model.
    """

    metrics: dict[str, dict[str, float]]
    resampled: dict[str, np.ndarray]  # (num_bootstrap,)


def measured_retrieval(
    texts: np.ndarray, images: np.ndarray, benchmark: Benchmark, ways: Sequence[Way], params: Evaluate, seed: int
) -> Measured:
    """From the features of all texts and pictures: the metrics of each way, and `mean_recall` where both are asked."""
    asked = questions(benchmark, "all")
    sides = {
        "text_to_image": (texts[asked.asking_texts], images[asked.images], asked.right_images),
        "image_to_text": (images[asked.asking_images], texts[asked.texts], asked.right_texts),
    }
    metrics, resampled = {}, {}
    for way in ways:
        answers = retrieval_answers(way, *sides[way])
        metrics |= {name: entry_of(found, params, seed) for name, found in answers.items()}
        mean = answers[f"{way}_mean_recall"]
        values = mean.values.astype(float)[:, None]
        resampled[f"{way}_mean_recall"] = resampled_means(values, mean.units, params.num_bootstrap, seed)[:, 0]
    if len(ways) == 2:
        metrics["mean_recall"] = mean_of_both_ways(metrics)
    return Measured(metrics, resampled)


def measured_classes(
    log_shares: np.ndarray, labels: np.ndarray, metric: Metric, params: Evaluate, seed: int
) -> Measured:
    """From the logarithms of the shares that each picture (n, classes) gives to the classes, by the metric alone."""
    value = score(metric, log_shares, labels)
    draws = _resampled(log_shares, labels, metric, params.num_bootstrap, seed)
    if metric == "accuracy":
        right = _right(log_shares, labels)[:, None]
        ((low, high),) = intervals(right, np.arange(len(right)), params.num_bootstrap, params.confidence, seed)
    else:
        low, high = np.percentile(draws, [50 * (1 - params.confidence), 50 * (1 + params.confidence)])
    chance = _chance(labels, metric, log_shares.shape[1])
    entry = {"value": value, "low": float(low), "high": float(high), "chance": chance}
    return Measured({metric: entry}, {metric: draws})


def log_shares_of(images: np.ndarray, classes: np.ndarray, logit_scale: float) -> np.ndarray:
    """The log-softmax of the scaled cosines (pictures, classes): of what the reference submits."""
    logits = logit_scale * (images @ classes.T)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def compared(ours: Measured, theirs: Measured, confidence: float) -> list[dict]:
    """The differences of two models' metrics with intervals, by the paired bootstrap, and their p-values.

    p: twice the share of resamples in which the difference has the other sign or none (Efron and Tibshirani, 1993,
    15.4), with one added, so that it is never 0.
    """
    found = []
    for name, draws in ours.resampled.items():
        differences = draws - theirs.resampled[name]
        low, high = np.percentile(differences, [50 * (1 - confidence), 50 * (1 + confidence)])
        other = min((differences <= 0).sum(), (differences >= 0).sum())
        found.append(
            {
                "metric": name,
                "value": ours.metrics[name]["value"] - theirs.metrics[name]["value"],
                "low": float(low),
                "high": float(high),
                "p": min(1.0, 2 * (int(other) + 1) / (len(differences) + 1)),
            }
        )
    return found


def by_template(
    images: np.ndarray, labels: np.ndarray, prompts: np.ndarray, metric: Metric, logit_scale: float
) -> list[dict[str, float]]:
    """Of each template the metric of it alone, and what all gain by having it; prompts (classes, templates, width)."""
    total = prompts.sum(axis=1)

    def scored(classes: np.ndarray) -> float:
        return score(metric, log_shares_of(images, unit(classes), logit_scale), labels)

    of_all = scored(total)
    return [
        {"alone": scored(prompts[:, i]), "gain": of_all - scored(total - prompts[:, i])}
        for i in range(prompts.shape[1])
    ]


def _right(log_shares: np.ndarray, labels: np.ndarray) -> np.ndarray:
    own = log_shares[np.arange(len(labels)), labels]
    return ((log_shares >= own[:, None]).sum(axis=1) == 1).astype(float)


def _resampled(log_shares: np.ndarray, labels: np.ndarray, metric: Metric, num_bootstrap: int, seed: int) -> np.ndarray:
    """The metric of pictures drawn with replacement: (num_bootstrap,), or MAX_RANKED of them."""
    num = len(labels)
    if metric in ("accuracy", "mean_per_class"):
        right, units = _right(log_shares, labels), np.arange(num)
        if metric == "accuracy":
            return resampled_means(right[:, None], units, num_bootstrap, seed)[:, 0]
        is_of = np.eye(log_shares.shape[1])[labels]
        means = resampled_means(np.hstack([is_of * right[:, None], is_of]), units, num_bootstrap, seed)
        hits, sizes = np.hsplit(means, 2)  # a class that was not drawn has no mean
        return np.nanmean(np.where(sizes > 0, hits / np.where(sizes > 0, sizes, 1), np.nan), axis=1)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(num, size=num) for _ in range(min(num_bootstrap, MAX_RANKED)))
    return np.array([score(metric, log_shares[rows], labels[rows]) for rows in drawn])


def _chance(labels: np.ndarray, metric: Metric, num_classes: int) -> float:
    """The metric of scores that know nothing: of average precision about the share of pictures that a class has."""
    if metric == "roc_auc":
        return 0.5
    return float(labels.mean()) if metric == "map_11_points" else 1 / num_classes

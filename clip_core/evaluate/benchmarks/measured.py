"""One model's figures on one benchmark, with intervals, and what tells two models apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_core.config.evaluation import Evaluate
from clip_core.evaluate.answers import answers_one_way
from clip_core.evaluate.benchmark import Benchmark, questions
from clip_core.evaluate.benchmarks.described import Metric, Way
from clip_core.evaluate.bootstrap import compared, resampled_means
from clip_core.evaluate.classification import interval_of, resampled, score
from clip_core.evaluate.measure import entry_of, mean_of_both_ways
from clip_core.inference.prompts import unit


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
    metrics, drawn = {}, {}
    for way in ways:
        answers = answers_one_way(way, *sides[way])
        metrics |= {name: entry_of(found, params, seed) for name, found in answers.items()}
        mean = answers[f"{way}_mean_recall"]
        values = mean.values.astype(float)[:, None]
        drawn[f"{way}_mean_recall"] = resampled_means(values, mean.units, params.num_bootstrap, seed)[:, 0]
    if len(ways) == 2:
        metrics["mean_recall"] = mean_of_both_ways(metrics)
    return Measured(metrics, drawn)


def measured_classes(scores: np.ndarray, labels: np.ndarray, metric: Metric, params: Evaluate, seed: int) -> Measured:
    """By the metric alone, from what `scores_of` gives for it (pictures, classes)."""
    value, draws = score(metric, scores, labels), resampled(metric, scores, labels, params.num_bootstrap, seed)
    low, high = interval_of(metric, value, draws, labels, params.confidence)
    entry = {"value": value, "low": float(low), "high": float(high), "chance": _chance(labels, metric, scores.shape[1])}
    return Measured({metric: entry}, {metric: draws})


def scores_of(images: np.ndarray, classes: np.ndarray, metric: Metric, logit_scale: float) -> np.ndarray:
    """The cosines (pictures, classes); where pictures are ranked, the log-softmax of the scaled ones.

    The softmax is what the reference submits: it ranks pictures otherwise than cosines do, and classes alike.
    """
    cosines = images @ classes.T
    if metric in ("accuracy", "mean_per_class"):
        return cosines
    logits = logit_scale * cosines
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def differences(ours: Measured, theirs: Measured, confidence: float) -> list[dict]:
    """By how much a model is above another, metric by metric, with interval and p-value: `bootstrap.compared`."""
    return [
        {"metric": name}
        | compared(
            ours.metrics[name]["value"] - theirs.metrics[name]["value"], draws - theirs.resampled[name], confidence
        )
        for name, draws in ours.resampled.items()
    ]


def by_template(
    images: np.ndarray, labels: np.ndarray, prompts: np.ndarray, metric: Metric, logit_scale: float
) -> list[dict[str, float]]:
    """Of each template the metric of it alone, and what all gain by having it; prompts (classes, templates, width)."""
    total = prompts.sum(axis=1)

    def scored(classes: np.ndarray) -> float:
        return score(metric, scores_of(images, unit(classes), metric, logit_scale), labels)

    of_all = scored(total)
    return [
        {"alone": scored(prompts[:, i]), "gain": of_all - scored(total - prompts[:, i])}
        for i in range(prompts.shape[1])
    ]


def _chance(labels: np.ndarray, metric: Metric, num_classes: int) -> float:
    """The metric of scores that know nothing: of average precision about the share of pictures that a class has."""
    if metric == "roc_auc":
        return 0.5
    return float(labels.mean()) if metric == "map_11_points" else 1 / num_classes

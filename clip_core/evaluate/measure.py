"""All metrics of a model on a benchmark, each with its interval and its chance level."""

from collections.abc import Mapping, Sequence

import numpy as np

from clip_core.config.evaluation import Evaluate
from clip_core.evaluate.answers import PARTS, Answers, answers_of, labelled
from clip_core.evaluate.benchmark import Benchmark, Questions, questions
from clip_core.evaluate.bootstrap import (
    bounds_of,
    compared,
    intervals,
    median_rank,
    resampled_means,
    resampled_median_ranks,
    units_of,
)
from clip_core.evaluate.embed import Features
from clip_core.evaluate.headline import SIZES
from clip_core.evaluate.retrieval import retrieve
from clip_core.inference.nearest import top_k

NUM_TOP = 10


def measure(features: Features, benchmark: Benchmark, params: Evaluate, seed: int) -> dict[str, dict]:
    """The content of metrics.json: group -> metric -> value, low, high, chance."""
    answered = answers_of(features, benchmark)
    metrics: dict[str, dict] = {
        group: {name: entry_of(answers, params, seed) for name, answers in named.items()}
        for group, named in answered.items()
    }
    for group in metrics.keys() - {"zero_shot"}:
        asked = questions(benchmark, group)
        metrics[group]["mean_recall"] = mean_of_both_ways(metrics[group])
        metrics[group] |= _sizes(asked) | {
            name.replace("median_rank", "num_ties"): answers.num_tied
            for name, answers in answered[group].items()
            if answers.num_tied
        }
    if "zero_shot" in metrics:
        metrics["zero_shot"] |= _commonest(metrics["zero_shot"], features, benchmark)
    return metrics


def compare(features: Features, others: Features, benchmark: Benchmark, params: Evaluate, seed: int) -> dict[str, dict]:
    """By how much a model is above another one, for each group and metric: bootstrap.py says what stands there.

    Of a median rank it is how much larger the rank is: there less is better.
    """
    ours, theirs = answers_of(features, benchmark), answers_of(others, benchmark)
    return {
        group: {name: difference(mine, theirs[group][name], params, seed) for name, mine in named.items()}
        for group, named in ours.items()
    }


def details(features: Features, benchmark: Benchmark) -> dict:
    """Every Chinese query with its best pictures among all of them."""
    asked = questions(benchmark, "all")
    found = retrieve(features.texts[asked.asking_texts], features.images, asked.right_images, NUM_TOP)
    return {
        "text_to_image": [
            {
                "text_id": benchmark.text_ids[text],
                "text": benchmark.texts[text],
                "group": "seen" if benchmark.is_seen[right].any() else "unseen",
                "right": [benchmark.image_ids[i] for i in right],
                "rank": int(rank),
                "top": [benchmark.image_ids[i] for i in row],
                "scores": [round(float(score), 6) for score in scores],
            }
            for text, right, rank, row, scores in zip(
                asked.asking_texts, asked.right_images, found.ranks, found.places, found.scores, strict=True
            )
        ]
    }


def free_answers(queries: Sequence[str], query_features: np.ndarray, images: np.ndarray, ids: list[str]) -> list[dict]:
    """Texts of which no right answer is known, with their best pictures among all: features (n, d), ids of (n, d)."""
    places, scores = top_k(images, query_features, NUM_TOP)
    return [
        {"text": text, "right": [], "top": [ids[i] for i in row], "scores": [round(float(score), 6) for score in best]}
        for text, row, best in zip(queries, places, scores, strict=True)
    ]


def entry_of(answers: Answers, params: Evaluate, seed: int) -> dict[str, float]:
    """The metric's value with its interval and its chance."""
    if answers.are_ranks:
        resampled = resampled_median_ranks(answers.values, answers.units, params.num_bootstrap, seed)
        value, (low, high) = median_rank(answers.values), bounds_of(resampled, params.confidence)
    else:
        values = answers.values.astype(float)
        value = values.mean()
        ((low, high),) = intervals(values[:, None], answers.units, params.num_bootstrap, params.confidence, seed)
    return {"value": float(value), "low": float(low), "high": float(high), "chance": answers.chance}


def difference(ours: Answers, theirs: Answers, params: Evaluate, seed: int) -> dict[str, float]:
    """By how much `ours` is above `theirs`, with interval and p-value: bootstrap.py says what stands there."""
    if ours.are_ranks:
        mine, its = (
            resampled_median_ranks(one.values, one.units, params.num_bootstrap, seed) for one in (ours, theirs)
        )
        return compared(median_rank(ours.values) - median_rank(theirs.values), mine - its, params.confidence)
    values = ours.values.astype(float) - theirs.values
    resampled = resampled_means(values[:, None], ours.units, params.num_bootstrap, seed)[:, 0]
    return compared(float(values.mean()), resampled, params.confidence)


def _sizes(asked: Questions) -> dict:
    """The queries and candidates of text to image, and what of SIZES there is."""
    by_text, by_picture = (int(units_of(right).max()) + 1 for right in (asked.right_images, asked.right_texts))
    rare = {
        "num_pictures_without_text": len(asked.images) - len(asked.asking_images),
        "num_texts_without_picture": len(asked.texts) - len(asked.asking_texts),
        "text_to_image_num_units": by_text if by_text < len(asked.asking_texts) else 0,
        "image_to_text_num_units": by_picture if by_picture < len(asked.asking_images) else 0,
    }
    plain = {"num_queries": len(asked.asking_texts), "num_candidates": len(asked.images)}
    return plain | {name: rare[name] for name in SIZES if rare[name]}


def mean_of_both_ways(metrics: Mapping) -> dict[str, float]:
    """The mean of six recalls."""
    # Both ways ask about the same pairs. The mean of their bounds holds however strongly they move together.
    to_image, to_text = metrics["text_to_image_mean_recall"], metrics["image_to_text_mean_recall"]
    return {key: (to_image[key] + to_text[key]) / 2 for key in to_image}


def _commonest(metrics: Mapping, features: Features, benchmark: Benchmark) -> dict:
    """The sizes, and beside each accuracy that of always answering the commonest class."""
    pictures, labels = labelled(features, benchmark)
    seen = benchmark.is_seen[pictures]
    added: dict = {"num_queries": len(pictures), "num_candidates": len(features.class_names)}
    for part, rows in zip(PARTS, (np.ones_like(seen), seen, ~seen), strict=True):
        if rows.any():
            name = f"{part}top1_accuracy"
            added[name] = {**metrics[name], "majority": float(np.bincount(labels[rows]).max() / rows.sum())}
    return added

"""All metrics of a model on a benchmark, each with its interval and its chance level."""

from collections.abc import Mapping

import numpy as np

from clip_core.config.evaluation import Evaluate
from clip_core.evaluate.answers import PARTS, Answers, answers_of, labelled
from clip_core.evaluate.benchmark import Benchmark, Questions, questions
from clip_core.evaluate.bootstrap import intervals, units_of
from clip_core.evaluate.embed import Features
from clip_core.evaluate.headline import SIZES
from clip_core.evaluate.retrieval import top

NUM_TOP = 10


def measure(features: Features, benchmark: Benchmark, params: Evaluate, seed: int) -> dict[str, dict]:
    """The content of metrics.json: group -> metric -> value, low, high, chance."""
    metrics: dict[str, dict] = {
        group: {name: entry_of(answers, params, seed) for name, answers in named.items()}
        for group, named in answers_of(features, benchmark).items()
    }
    for group in metrics.keys() - {"zero_shot"}:
        asked = questions(benchmark, group)
        metrics[group]["mean_recall"] = mean_of_both_ways(metrics[group])
        metrics[group] |= _sizes(asked)
    if "zero_shot" in metrics:
        metrics["zero_shot"] |= _commonest(metrics["zero_shot"], features, benchmark)
    return metrics


def details(features: Features, benchmark: Benchmark) -> dict:
    """Every Chinese query with its best pictures among all of them."""
    asked = questions(benchmark, "all")
    places, scores = top(features.texts[asked.asking_texts], features.images, asked.right_images, NUM_TOP)
    return {
        "text_to_image": [
            {
                "text_id": benchmark.text_ids[text],
                "text": benchmark.texts[text],
                "group": "seen" if benchmark.is_seen[right].any() else "unseen",
                "right": [benchmark.image_ids[i] for i in right],
                "top": [benchmark.image_ids[i] for i in row],
                "scores": [round(float(score), 6) for score in row_scores],
            }
            for text, right, row, row_scores in zip(asked.asking_texts, asked.right_images, places, scores, strict=True)
        ]
    }


def entry_of(answers: Answers, params: Evaluate, seed: int) -> dict[str, float]:
    """The metric's value with its interval and its chance."""
    values = answers.values.astype(float)
    ((low, high),) = intervals(values[:, None], answers.units, params.num_bootstrap, params.confidence, seed)
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "chance": answers.chance}


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

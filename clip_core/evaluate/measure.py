"""All metrics of a model on a benchmark, each with its interval and its chance level."""

import numpy as np

from clip_core.config import Evaluate
from clip_core.evaluate.benchmark import GROUPS, Benchmark, Questions, questions
from clip_core.evaluate.bootstrap import intervals
from clip_core.evaluate.embed import Features
from clip_core.evaluate.retrieval import AT, chance_at, ranks, top
from clip_core.evaluate.zeroshot import is_right

NUM_TOP = 10
PARTS = ("", "seen_", "unseen_")  # of the zero-shot pictures; the first is all of them


def measure(features: Features, benchmark: Benchmark, params: Evaluate, seed: int) -> dict:
    """Each group's recalls both ways, and zero-shot accuracy where the pictures have classes."""
    metrics = {}
    for group, asked in _asked(benchmark):
        to_image, to_text = ranks_of(features, asked)
        image = _recalls("text_to_image", to_image, asked.right_images, len(asked.images), params, seed)
        text = _recalls("image_to_text", to_text, asked.right_texts, len(asked.texts), params, seed)
        ways = image["text_to_image_mean_recall"], text["image_to_text_mean_recall"]
        metrics[group] = {
            **image,
            **text,
            # The two directions ask about the same pairs. The mean of their bounds holds however they move together.
            "mean_recall": {key: (ways[0][key] + ways[1][key]) / 2 for key in ways[0]},
            "num_queries": len(asked.texts),
            "num_candidates": len(asked.images),
        }
    if len(features.class_names) > 1:
        metrics["zero_shot"] = _zero_shot(features, benchmark, params, seed)
    return metrics


def ranks_of(features: Features, asked: Questions) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of text-to-image and of image-to-text retrieval within one group."""
    texts, images = features.texts[asked.texts], features.images[asked.images]
    to_image = ranks(texts, images, asked.right_images)
    return to_image, ranks(images[asked.asking_images], texts, asked.right_texts)


def hits_of(ranks: np.ndarray) -> np.ndarray:
    """What each query adds to recall@1, @5, @10 and their mean; shape (queries, 4)."""
    hits = ranks[:, None] <= np.array(AT)
    return np.column_stack([hits, hits.mean(axis=1)])


def classified(features: Features, benchmark: Benchmark) -> tuple[np.ndarray, np.ndarray]:
    """The pictures that have a class, as places in image_ids, and whether zero-shot classification is right."""
    place = {name: i for i, name in enumerate(features.class_names)}
    pictures = np.array([i for i, name in enumerate(benchmark.classes) if name is not None])
    labels = np.array([place[benchmark.classes[i]] for i in pictures])
    return pictures, is_right(features.images[pictures], features.classes, labels)


def details(features: Features, benchmark: Benchmark) -> dict:
    """Every Chinese query with its best pictures among all of them."""
    asked = questions(benchmark, "all")
    places, scores = top(features.texts, features.images, asked.right_images, NUM_TOP)
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
            for text, right, row, row_scores in zip(asked.texts, asked.right_images, places, scores, strict=True)
        ]
    }


def _asked(benchmark: Benchmark) -> list[tuple[str, Questions]]:
    """The groups that have queries; a source without unseen concepts has no such group."""
    return [(group, asked) for group in GROUPS if len((asked := questions(benchmark, group)).texts)]


def _recalls(way: str, found: np.ndarray, right: list, num_candidates: int, params: Evaluate, seed: int) -> dict:
    names = [*(f"{way}_recall@{k}" for k in AT), f"{way}_mean_recall"]
    chances = [chance_at([len(places) for places in right], num_candidates, k) for k in AT]
    return _entries(names, hits_of(found), [*chances, float(np.mean(chances))], params, seed)


def _zero_shot(features: Features, benchmark: Benchmark, params: Evaluate, seed: int) -> dict:
    pictures, right = classified(features, benchmark)
    seen = benchmark.is_seen[pictures]
    sizes = {"num_queries": len(pictures), "num_candidates": len(features.class_names)}
    accuracies = {}
    for part, chosen in zip(PARTS, (np.ones_like(seen), seen, ~seen), strict=True):
        if chosen.any():
            name, chance = f"{part}top1_accuracy", 1 / len(features.class_names)
            accuracies |= _entries([name], right[chosen, None], [chance], params, seed)
            _, times = np.unique([benchmark.classes[i] for i in pictures[chosen]], return_counts=True)
            accuracies[name]["majority"] = float(times.max() / times.sum())  # always answering the commonest class
    return accuracies | sizes


def _entries(
    names: list[str], values: np.ndarray, chances: list[float], params: Evaluate, seed: int
) -> dict[str, dict[str, float]]:
    bounds = intervals(values, params.num_bootstrap, params.confidence, seed)
    return {
        name: {"value": float(value), "low": float(low), "high": float(high), "chance": chance}
        for name, value, (low, high), chance in zip(names, values.mean(axis=0), bounds, chances, strict=True)
    }

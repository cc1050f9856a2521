"""Recall at more places than the metrics name: how it rises with the answers that a reader looks at."""

import numpy as np

from clip_core.evaluate.benchmark import Benchmark, questions
from clip_core.evaluate.embed import Features
from clip_core.evaluate.retrieval import ranks, recall_at

PLACES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)


def recall_curves(features: Features, benchmark: Benchmark) -> dict[str, list[list[float]]]:
    """Way -> [k, recall among all candidates], for those of PLACES below their number."""
    asked = questions(benchmark, "all")
    texts, images = features.texts, features.images
    found = {
        "text_to_image": (ranks(texts[asked.asking_texts], images, asked.right_images), len(images)),
        "image_to_text": (ranks(images[asked.asking_images], texts[asked.texts], asked.right_texts), len(asked.texts)),
    }
    return {way: _curve(places, num_candidates) for way, (places, num_candidates) in found.items()}


def _curve(found: np.ndarray, num_candidates: int) -> list[list[float]]:
    return [[k, round(recall_at(found, k), 6)] for k in PLACES if k == 1 or k < num_candidates]

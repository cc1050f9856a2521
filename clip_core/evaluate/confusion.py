"""The classes that zero-shot classification takes for others, with the pictures."""

import numpy as np

from clip_core.evaluate.answers import labelled
from clip_core.evaluate.benchmark import Benchmark
from clip_core.evaluate.embed import Features

NUM_CONFUSED, NUM_PICTURES = 6, 8


def confused(features: Features, benchmark: Benchmark) -> list[dict]:
    """The commonest mistakes, class and the class it is taken for; first the pictures that are the surest mistakes."""
    pictures, labels = labelled(features, benchmark)
    if len(features.class_names) < 2 or not len(pictures):
        return []
    scores = features.images[pictures] @ features.classes.T  # (pictures, classes)
    found, rows = scores.argmax(axis=1), np.arange(len(labels))
    lead = scores[rows, found] - scores[rows, labels]
    pairs, counts = np.unique(np.column_stack([labels, found])[found != labels], axis=0, return_counts=True)
    told = []
    for place in np.argsort(-counts, kind="stable")[:NUM_CONFUSED]:
        label, other = pairs[place]
        mistakes = np.flatnonzero((labels == label) & (found == other))
        shown = mistakes[np.argsort(-lead[mistakes], kind="stable")][:NUM_PICTURES]
        told.append(
            {
                "class": features.class_names[label],
                "taken_for": features.class_names[other],
                "count": int(counts[place]),
                "of": int((labels == label).sum()),
                "pictures": [benchmark.image_ids[i] for i in pictures[shown]],
            }
        )
    return told

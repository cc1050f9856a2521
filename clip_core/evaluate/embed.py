"""A benchmark's texts, pictures and classes as features."""

from dataclasses import dataclass

import numpy as np

from clip_core.data.store import Store
from clip_core.evaluate.benchmark import Benchmark
from clip_core.inference.features import image_features, shelves_of
from clip_core.inference.predictor import Predictor
from clip_core.inference.prompts import classifier


@dataclass(frozen=True)
class Features:
    """What a model makes of a benchmark; `classes` holds a row for each of `class_names`."""

    texts: np.ndarray
    images: np.ndarray
    class_names: list[str]
    classes: np.ndarray


def embed(predictor: Predictor, store: Store, benchmark: Benchmark, templates: tuple[str, ...]) -> Features:
    """The features of all texts, pictures and class names of `benchmark`; pictures' are kept, prints how far it is."""
    images = image_features(predictor, shelves_of(store))
    texts = predictor.encode_texts(benchmark.texts)
    if predictor.num_truncated:
        length = predictor.contract.context_length
        print(f"  {predictor.num_truncated} of {len(texts)} texts were cut off at {length} tokens", flush=True)
    names = sorted({name for name in benchmark.classes if name is not None})
    return Features(
        texts=texts,
        images=images,
        class_names=names,
        classes=classifier(predictor.encode_texts, names, templates) if names else np.empty((0, 0)),
    )

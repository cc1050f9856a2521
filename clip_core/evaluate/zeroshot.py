"""Zero-shot classification: the class whose name, said in several ways, is nearest to the picture."""

import numpy as np

from clip_core.evaluate.retrieval import ranks


def is_right(image_features: np.ndarray, class_features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each picture's own class alone scores highest."""
    return ranks(image_features, class_features, labels[:, None]) == 1

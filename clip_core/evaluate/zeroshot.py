"""Zero-shot classification: the class whose name, said in several ways, is nearest to the picture."""

from collections.abc import Callable, Sequence

import numpy as np

from clip_core.evaluate.retrieval import ranks


def classifier(
    encode_texts: Callable[[list[str]], np.ndarray], class_names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """One unit vector a class, the direction of its prompts' mean; shape (classes, embed_dim)."""
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    features = encode_texts(prompts)  # each L2-normalised
    means = features.reshape(len(class_names), len(templates), -1).mean(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def is_right(image_features: np.ndarray, class_features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each picture's own class alone scores highest."""
    return ranks(image_features, class_features, labels[:, None]) == 1

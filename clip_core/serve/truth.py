"""What torch computes: the truth that exports and servers are measured against."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clip_core.inference.predictor import Predictor, encode_pictures

if TYPE_CHECKING:
    from clip_core.data.store import Store


class Truth(NamedTuple):
    """The test queries and the gallery as torch sees them, and the recall that was measured offline."""

    weights_id: str
    texts: Sequence[str]
    text_features: np.ndarray  # (texts, embed_dim)
    right: Sequence[np.ndarray]  # of each text, places in the gallery
    image_ids: Sequence[str]
    image_features: np.ndarray  # (images, embed_dim)
    recall: dict[int, float]  # by k, of all texts among all pictures


def make_truth(
    predictor: Predictor, store: "Store", texts: Sequence[str], right: Sequence[np.ndarray], metrics: dict
) -> Truth:
    """The truth about the store's pictures and the `texts`; `metrics` are those of the group that asks all."""
    recall = {k: metrics[f"text_to_image_recall@{k}"]["value"] for k in (1, 5, 10)}
    text_features, image_features = predictor.encode_texts(texts), encode_pictures(predictor, store)
    return Truth(predictor.weights_id, texts, text_features, right, store.image_ids, image_features, recall)

"""The recall that a training shows on its way, measured as it trains: in its precision, no picture decoded twice."""

from functools import cached_property

import numpy as np

from clip_core.data.pictures import Kept, Pictures, decoded
from clip_core.data.store import Store
from clip_core.evaluate.retrieval import quick_recall
from clip_core.inference.predictor import READ_AT_ONCE, Predictor
from clip_core.inference.torch_towers import TorchTowers
from clip_core.model.clip import CLIP
from clip_core.model.contract import Contract
from clip_core.model.precision import pick_device, pick_precision
from clip_core.text import Tokenizer


class RecallInTraining:
    """Measures a model on a packed split, again and again.

    Pictures of which there are too many for memory are decoded each time; where the image side stays as it is they
    are encoded once.
    """

    def __init__(
        self, store: Store, tokenizer: Tokenizer, contract: Contract, precision: str, *, is_image_side_fixed: bool
    ) -> None:
        self._store, self._tokenizer, self._contract = store, tokenizer, contract
        self._precision = pick_precision(precision, pick_device("auto"))
        self._is_image_side_fixed = is_image_side_fixed
        self._features: np.ndarray | None = None

    def __call__(self, model: CLIP) -> dict[str, float]:
        """The metrics of the model as it is now, in eval mode."""
        predictor = Predictor(TorchTowers(model, self._precision), self._tokenizer, self._contract, "in training")

        def encode_images(images: np.ndarray) -> np.ndarray:
            if self._features is None or not self._is_image_side_fixed:
                parts = [images[start : start + READ_AT_ONCE] for start in range(0, len(images), READ_AT_ONCE)]
                self._features = np.concatenate([self._encoded(predictor, some) for some in parts])
            return self._features

        widths = self._contract.architecture.matryoshka
        return quick_recall(predictor.encode_texts, encode_images, self._store, widths)

    @cached_property
    def _pictures(self) -> Pictures:
        return decoded(self._store, self._contract.image_size, self._contract.preprocessing)

    def _encoded(self, predictor: Predictor, images: np.ndarray) -> np.ndarray:
        if not self._is_image_side_fixed and isinstance(self._pictures, Kept) and not self._pictures.broken:
            pixels, size = self._pictures(images).numpy(), predictor.towers.images_at_once
            batches = [pixels[start : start + size] for start in range(0, len(pixels), size)]
            return np.concatenate([predictor.towers.encode_images(batch) for batch in batches])
        return predictor.encode_images([self._store.image_bytes(i) for i in images.tolist()])

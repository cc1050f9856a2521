"""What people call: Chinese texts and pictures in, unit vectors out."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clip_core.image import pixels_of
from clip_core.model.clip import CLIP
from clip_core.model.contract import Contract, read_contract, release_of
from clip_core.model.weights import load_weights
from clip_core.text import Tokenizer, load_tokenizer

TEXTS_AT_ONCE = 256
IMAGES_AT_ONCE = 128


class Predictor:
    """A trained model with its tokenizer and its preprocessing."""

    def __init__(self, model: CLIP, tokenizer: Tokenizer, contract: Contract, release: str) -> None:
        self.contract = contract
        self.release = release  # the fingerprint of what it computes
        self.logit_scale = math.exp(model.logit_scale.item())  # the factor of cosines in CLIP's softmax
        self._model = model
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """The texts as int64 (n, longest), padded with 0."""
        return self._tokenizer(texts)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """The texts as float32 (n, embed_dim), L2-normalised."""
        token_ids = self.tokenize(texts)
        lengths = (token_ids != 0).sum(1)
        features = self._empty(len(token_ids))
        for rows in _slices(np.argsort(lengths, kind="stable"), TEXTS_AT_ONCE):  # texts of like length: less padding
            features[rows] = self._encode(self._model.encode_texts, token_ids[rows, : lengths[rows].max()])
        return features

    def encode_images(self, images: Sequence[bytes | Image.Image]) -> np.ndarray:
        """The pictures (encoded bytes or PIL images) as float32 (n, embed_dim), L2-normalised."""
        features = self._empty(len(images))
        for rows in _slices(np.arange(len(images)), IMAGES_AT_ONCE):
            features[rows] = self._encode(self._model.encode_images, np.stack([self._pixels(images, i) for i in rows]))
        return features

    def _pixels(self, images: Sequence[bytes | Image.Image], i: int) -> np.ndarray:
        try:
            return pixels_of(images[i], self.contract.image_size, self.contract.preprocessing)
        except (ValueError, TypeError) as error:
            raise type(error)(f"images[{i}]: {error}") from None

    def _empty(self, num_rows: int) -> np.ndarray:
        return np.empty((num_rows, self.contract.embed_dim), dtype=np.float32)

    @staticmethod
    def _encode(encode: Callable[[torch.Tensor], torch.Tensor], rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return encode(torch.from_numpy(rows)).numpy()


def load(folder: str | Path) -> Predictor:
    """The model in the weights folder."""
    folder = Path(folder)
    contract = read_contract(folder)
    tokenizer = load_tokenizer(folder / contract.tokenizer, contract.context_length)
    return Predictor(load_weights(folder), tokenizer, contract, release_of(folder))


def _slices(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]

"""What people call: Chinese texts and pictures in, unit vectors out."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from PIL import Image

from clip_core.errors import UserError
from clip_core.image import pixels_of
from clip_core.inference.calibration import CALIBRATION_FILE, Calibration, read_calibration
from clip_core.model.contract import MODEL_FILE, Contract, read_contract, weights_id
from clip_core.text import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from clip_core.data.store import Store

READ_AT_ONCE = 512  # encoded pictures in memory; a multiple of the next, so that none of its batches is cut
DECODED_AT_ONCE = 128  # pictures in memory
MAX_DECODERS = 8  # threads


class Towers(Protocol):
    """A runtime's two towers, with arrays on both sides."""

    runtime: str  # torch, onnx
    texts_at_once: int
    images_at_once: int
    logit_scale: float  # exponentiated

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> Literal["fp32", "bf16"]: ...

    def encode_texts(self, token_ids: np.ndarray) -> np.ndarray: ...

    def encode_images(self, pixels: np.ndarray) -> np.ndarray: ...


class Predictor:
    """A trained model with its tokenizer and its preprocessing.

    With `width`, features are cut to their first numbers and normalised again: for models that were trained to allow
    it (Matryoshka).
    """

    def __init__(
        self,
        towers: Towers,
        tokenizer: Tokenizer,
        contract: Contract,
        weights_id: str,
        width: int | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.contract = contract
        self.weights_id = weights_id  # the fingerprint of what it computes
        self.logit_scale = towers.logit_scale  # the factor of cosines in CLIP's softmax
        self.runtime, self.device, self.precision = towers.runtime, towers.device, towers.precision
        self.width = _checked_width(width, contract)
        self.towers = towers
        self._tokenizer = tokenizer
        self._calibration = calibration

    def __repr__(self) -> str:
        return (
            f"Predictor(weights_id={self.weights_id}, runtime={self.runtime}, device={self.device}, "
            f"precision={self.precision}, width={self.width})"
        )

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """The texts as int64 (n, longest), padded with 0."""
        return self._tokenizer(texts)

    @property
    def num_truncated(self) -> int:
        """How many texts were longer than `contract.context_length` so far, and so were cut off."""
        return self._tokenizer.num_truncated

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """The texts as float32 (n, width), L2-normalised."""
        token_ids = self.tokenize(texts)
        lengths = (token_ids != 0).sum(1)
        features = self._empty(len(token_ids))
        # texts of like length together: less padding
        for rows in _slices(np.argsort(lengths, kind="stable"), self.towers.texts_at_once):
            features[rows] = self._cut(self.towers.encode_texts(token_ids[rows, : max(2, lengths[rows].max())]))
        return features

    def encode_images(self, images: Sequence[bytes | Image.Image]) -> np.ndarray:
        """The pictures (encoded bytes or PIL images) as float32 (n, width), L2-normalised."""
        if isinstance(images, bytes | Image.Image):
            raise TypeError("a list of pictures is wanted, not one: [picture]")
        features = self._empty(len(images))
        with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_DECODERS)) as pool:  # Pillow works without Python's lock
            for some in _slices(np.arange(len(images)), DECODED_AT_ONCE):
                decode = map if len(some) == 1 else pool.map
                pixels = np.stack(list(decode(lambda i: self._pixels(images, i), some)))
                for rows in _slices(np.arange(len(pixels)), self.towers.images_at_once):
                    features[some[rows]] = self._cut(self.towers.encode_images(pixels[rows]))
        return features

    def match_probability(self, cosines: np.ndarray, num_candidates: int | None = None) -> np.ndarray:
        """The probability that a text and a picture of each of these cosines match, among so many pictures.

        None: as many as it was fitted with. `clip_core/inference/calibration.py` says what it means. UserError for a
        model without a calibration.
        """
        if self._calibration is None:
            raise UserError(
                f"the model {self.weights_id} has no {CALIBRATION_FILE}: `dvc repro evaluate` fits one and the export "
                "carries it (models/onnx); or copy reports/valid/calibration.json into the weights folder"
            )
        return self._calibration.probability(cosines, num_candidates)

    def _pixels(self, images: Sequence[bytes | Image.Image], i: int) -> np.ndarray:
        try:
            return pixels_of(images[i], self.contract.image_size, self.contract.preprocessing)
        except (ValueError, TypeError) as error:
            raise type(error)(f"images[{i}]: {error}") from None

    def _cut(self, features: np.ndarray) -> np.ndarray:
        if self.width == self.contract.embed_dim:
            return features
        features = features[:, : self.width]
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    def _empty(self, num_rows: int) -> np.ndarray:
        return np.empty((num_rows, self.width), dtype=np.float32)


def encode_pictures(predictor: Predictor, store: "Store") -> np.ndarray:
    """The features of all pictures of the store, in its order; prints how far it is."""
    parts = []
    for start in range(0, len(store), READ_AT_ONCE):
        stop = min(start + READ_AT_ONCE, len(store))
        parts.append(predictor.encode_images([store.image_bytes(i) for i in range(start, stop)]))
        print(f"  {stop} of {len(store)} pictures encoded with {predictor.runtime}", flush=True)
    return np.concatenate(parts)


def load(folder: str | Path, device: str = "auto", precision: str = "fp32", width: int | None = None) -> Predictor:
    """The model in the weights folder, in torch; `clip_core.load` says what the arguments mean."""
    folder = Path(folder)
    contract = read_contract(folder)
    tokenizer = tokenizer_in(folder, contract)
    with ThreadPoolExecutor(1) as pool:
        identity = pool.submit(weights_id, folder, width)  # reads all weights, too: meanwhile the modules are imported
        from clip_core.inference.torch_towers import load_towers

        towers = load_towers(folder, device, precision)
        weights = identity.result()
        return Predictor(towers, tokenizer, contract, weights, width, read_calibration(folder, weights))


def tokenizer_in(folder: Path, contract: Contract) -> Tokenizer:
    """The tokenizer in `folder`; raises UserError when it is not that of the model beside it."""
    tokenizer = load_tokenizer(folder / contract.tokenizer, contract.context_length)
    num_rows = contract.architecture.text_tower.vocab_size
    if tokenizer.vocab_size != num_rows:
        raise UserError(
            f"{folder / contract.tokenizer} has {tokenizer.vocab_size:,} tokens, but the model in "
            f"{folder / MODEL_FILE} knows {num_rows:,}: both files must be of one model: copy the folder again"
        )
    return tokenizer


def _checked_width(width: int | None, contract: Contract) -> int:
    if width is None:
        return contract.embed_dim
    trained = (*contract.architecture.matryoshka, contract.embed_dim)
    if not 1 <= width <= contract.embed_dim:
        raise UserError(f"width {width}: features of this model have 1 to {contract.embed_dim} numbers")
    if width not in trained:
        warnings.warn(
            f"width {width}: this model was trained for {', '.join(map(str, trained))}; other widths lose more",
            stacklevel=3,
        )
    return width


def _slices(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]

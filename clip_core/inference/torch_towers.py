"""The two towers in torch, from numpy to numpy: what a `Predictor` computes with."""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clip_core.inference.fast import make_fast
from clip_core.memory import freed_memory_returned
from clip_core.model.clip import CLIP
from clip_core.model.precision import pick_device, pick_precision
from clip_core.model.weights import load_weights


class TorchTowers:
    """The model as it is, on the device where it lies."""

    runtime = "torch"
    texts_at_once = 256
    images_at_once = 128

    def __init__(self, model: CLIP, precision: Literal["fp32", "bf16"] = "fp32") -> None:
        self.model = model
        self.precision = precision
        self.logit_scale = math.exp(model.logit_scale.item())
        self._device = model.logit_scale.device

    @property
    def device(self) -> str:
        return str(self._device)

    def encode_texts(self, token_ids: np.ndarray) -> np.ndarray:
        """int64 (n, length), padded with 0 -> float32 (n, embed_dim), L2-normalised."""
        return self._encode(self.model.encode_texts, token_ids)

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, 3, image_size, image_size) -> float32 (n, embed_dim), L2-normalised."""
        return self._encode(self.model.encode_images, pixels)

    def _encode(self, encode: Callable[[Tensor], Tensor], rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), self._numbers():
            return encode(torch.from_numpy(rows).to(self._device)).float().cpu().numpy()

    @contextmanager
    def _numbers(self) -> Generator[None]:
        is_bf16, on_gpu = self.precision == "bf16", self._device.type == "cuda"
        # Unless told otherwise, GPUs multiply fp32 in convolutions with 10 bits (TF32), which is not fp32.
        flags = torch.backends.cudnn.flags(enabled=True, allow_tf32=is_bf16) if on_gpu else nullcontext()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=is_bf16), flags:
            yield


class FastTorchTowers(TorchTowers):
    """The model rewritten for inference; on the CPU in batches whose numbers stay in its cache."""

    def __init__(self, model: CLIP, device: torch.device, precision: Literal["fp32", "bf16"]) -> None:
        is_packed = make_fast(model, device, torch.bfloat16 if precision == "bf16" else torch.float32)
        if is_packed:
            self.texts_at_once, self.images_at_once = 64, 16
        super().__init__(model, precision)


def load_towers(folder: Path, device: str, precision: str) -> FastTorchTowers:
    """The towers of the weights folder, for inference."""
    place = pick_device(device)
    number = pick_precision(precision, place)
    with freed_memory_returned():
        return FastTorchTowers(load_weights(folder), place, number)

"""What each side does in a run: ours as `clip_core.load` gives it, peers with their own functions unchanged."""

import io
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from benchmarks import loading, loss, overhead, packing, recall, step, validation
from benchmarks.data import captions, photos
from benchmarks.models import Model, model_at
from clip_core.inference.torch_towers import TorchTowers

Run = Callable[[], np.ndarray]
OWN = {  # tasks with a file of their own
    "load": loading.make,
    "loss": loss.make,
    "pack": packing.make,
    "raw": overhead.make,
    "recall": recall.make,
    "step": step.make,
    "validate": validation.make,
}
TEXTS_AT_ONCE = 64  # the default of cn_clip's own extraction


def make(spec: dict) -> Run:
    """The run of one side; it returns what it computed, so that both sides can be compared."""
    torch.set_num_threads(spec["threads"])
    if spec["task"] in OWN:
        return OWN[spec["task"]](spec)
    model = model_at(spec["model"])
    sides = {"ours": _ours, "cn_clip": _cn_clip, "transformers": _transformers}
    return sides[spec["side"]](model, spec)


def _ours(model: Model, spec: dict) -> Run:
    import clip_core

    options = {name: spec[name] for name in ("device", "precision", "runtime") if name in spec}
    predictor = clip_core.load(model.weights, **options)
    if spec.get("compile"):
        clip: Any = cast(TorchTowers, predictor.towers).model
        clip.encode_images = torch.compile(clip.encode_images)
    texts = captions(model.tokenizer, spec["num"])
    if spec["task"] == "images":
        pictures = photos(spec["num"])
        return lambda: predictor.encode_images(pictures)
    if spec["task"] == "texts":
        return lambda: predictor.encode_texts(texts)
    return lambda: _padded(predictor.tokenize(texts))


def _cn_clip(model: Model, spec: dict) -> Run:
    from cn_clip import clip as cn_clip

    texts = captions(model.tokenizer, spec["num"])
    if spec["task"] == "tokens":
        return lambda: cn_clip.tokenize(texts).numpy()
    device = spec.get("device", "cpu")
    net, preprocess = model.load_in_cn_clip(device)
    net.eval()
    if spec["task"] == "texts":
        return lambda: np.concatenate(
            [
                _encoded(net.encode_text, cn_clip.tokenize(texts[start : start + TEXTS_AT_ONCE]), device)
                for start in range(0, len(texts), TEXTS_AT_ONCE)
            ]
        )
    pictures = photos(spec["num"])
    return lambda: _encoded(
        net.encode_image, torch.stack([preprocess(Image.open(io.BytesIO(data))) for data in pictures]), device
    )


def _transformers(model: Model, spec: dict) -> Run:
    from transformers import ChineseCLIPModel, ChineseCLIPProcessor

    net = ChineseCLIPModel.from_pretrained(model.transformers).eval()
    processor = ChineseCLIPProcessor.from_pretrained(model.transformers)
    texts, device = captions(model.tokenizer, spec["num"]), spec.get("device", "cpu")
    net.to(device)

    def encode_texts(some: list[str]) -> np.ndarray:
        inputs = processor(text=some, padding=True, truncation=True, max_length=52, return_tensors="pt")
        return _encoded(lambda _: net.get_text_features(**inputs.to(device)), torch.empty(0), device)

    def encode_images() -> np.ndarray:
        images = [Image.open(io.BytesIO(data)) for data in pictures]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        return _encoded(lambda rows: net.get_image_features(pixel_values=rows), pixels, device)

    if spec["task"] == "texts":
        starts = range(0, len(texts), TEXTS_AT_ONCE)
        return lambda: np.concatenate([encode_texts(texts[start : start + TEXTS_AT_ONCE]) for start in starts])
    pictures = photos(spec["num"])
    return encode_images


def _encoded(encode: Callable[[torch.Tensor], Any], rows: torch.Tensor, device: str) -> np.ndarray:
    with torch.no_grad():
        features = encode(rows.to(device))
        features = getattr(features, "pooler_output", features)
        return (features / features.norm(dim=-1, keepdim=True)).float().cpu().numpy()


def _padded(token_ids: np.ndarray) -> np.ndarray:
    return np.pad(token_ids, ((0, 0), (0, 52 - token_ids.shape[1])))

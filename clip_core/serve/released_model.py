"""The model that a release serves, asked here without a Triton: what it computes, and how long it takes."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clip_core.inference.onnx_predictor import OnnxTowers
from clip_core.inference.predictor import Predictor, tokenizer_in
from clip_core.model.contract import read_contract
from clip_core.serve.golden import Golden
from clip_core.serve.release import read_manifest


def load_released(folder: Path) -> Predictor:
    """The model of the release in `folder`, in onnxruntime on the CPU; UserError where this version can not read it."""
    parts = {name: folder / "models" / name / "1" for name in ("text_preprocess", "text_core", "image_core")}
    contract = read_contract(parts["text_preprocess"])
    towers = OnnxTowers(parts["text_core"] / "model.onnx", parts["image_core"] / "model.onnx")
    return Predictor(towers, tokenizer_in(parts["text_preprocess"], contract), contract, read_manifest(folder).weights)


def largest_difference(predictor: Predictor, golden: Golden) -> float:
    """The largest difference of a feature from torch's answers to the golden queries; NaN is one."""
    texts = predictor.encode_texts(golden.texts) - golden.text_features
    images = predictor.encode_images(golden.images) - golden.image_features
    return float(np.max([np.abs(texts).max(), np.abs(images).max()]))


def median_seconds(predictors: Sequence[Predictor], text: str, image: bytes, num_timed: int) -> list[float]:
    """The median time of each for one text and one picture, all asked by turns, so that they share what else runs."""
    took: list[list[float]] = [[] for _ in predictors]
    for _ in range(num_timed):
        for predictor, seconds in zip(predictors, took, strict=True):
            start = time.perf_counter()
            predictor.encode_texts([text])
            predictor.encode_images([image])
            seconds.append(time.perf_counter() - start)
    return [float(np.median(seconds)) for seconds in took]

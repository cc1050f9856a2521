"""Matryoshka: one training, features of several widths; a narrower one can be exported, searched and served."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from clip_core.all_params import check_params
from clip_core.evaluate.retrieval import quick_recall
from clip_core.inference.predictor import encode_pictures, load
from clip_core.model.clip import make_clip
from clip_core.model.contract import read_contract, weights_id
from clip_core.model.matryoshka import narrow, narrow_weights
from clip_core.model.weights import load_weights, save_weights
from clip_core.params_file import read_yaml
from clip_core.recipe import merged
from tests.conftest import ROOT
from tests.test_grad_cache import batch_of
from tests.tiny import MADE, tiny_architecture, tiny_store, tiny_tokenizer_json
from tests.tiny_release import Release


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed split and a model with random weights of which widths 4 and 2 count as trained."""
    folder = tmp_path_factory.mktemp("matryoshka")
    tokenizer_json = tiny_tokenizer_json(tiny_store(folder / "store"))
    architecture = tiny_architecture(tokenizer_json).model_copy(update={"matryoshka": (4, 2)})
    save_weights(make_clip(architecture, 1), tokenizer_json, folder / "model", MADE)
    return folder


@pytest.mark.parametrize("bias", [False, True])
def test_a_narrow_model_s_features_are_the_first_numbers_normalised_again(bias: bool, folder: Path) -> None:
    model, batch = load_weights(folder / "model"), batch_of()
    if bias:  # as RN50 has
        model.image_projection.bias = torch.nn.Parameter(torch.linspace(-1, 1, 8))
    with torch.no_grad():
        wide = model.encode_images(batch.images), model.encode_texts(batch.token_ids)
        narrow(model, 4)
        for found, features in zip(
            (model.encode_images(batch.images), model.encode_texts(batch.token_ids)), wide, strict=True
        ):
            assert torch.allclose(found, normalize(features[:, :4], dim=1), atol=1e-6)


def test_narrow_weights_are_a_plain_model_and_a_release_of_their_own(folder: Path, tmp_path: Path) -> None:
    narrow_weights(folder / "model", 4, tmp_path / "narrow")
    contract = read_contract(tmp_path / "narrow")
    assert (contract.embed_dim, contract.architecture.matryoshka) == (4, (2,))
    assert weights_id(tmp_path / "narrow") != weights_id(folder / "model")
    texts = ["红色圆形", "一张绿色方块的图片"]
    np.testing.assert_allclose(
        load(tmp_path / "narrow").encode_texts(texts), load(folder / "model", width=4).encode_texts(texts), atol=1e-6
    )
    with pytest.raises(ValueError, match=r"width 3: .*model was trained for 8, 4, 2"):
        narrow_weights(folder / "model", 3, tmp_path / "other")


def test_the_export_of_a_width_is_that_of_a_smaller_model(narrow_release: Release) -> None:
    from clip_core.inference.onnx_towers import encode_texts
    from clip_core.serve.index import read_index

    model, onnx, texts = narrow_release.model, narrow_release.onnx, narrow_release.truth.texts
    assert json.loads((onnx / "parity.json").read_text())["num_texts"] == len(texts)
    assert read_contract(onnx).embed_dim == 4
    assert read_index(narrow_release.index).features.shape == (len(narrow_release.store), 4)
    predictor = load(model, width=4)
    np.testing.assert_allclose(encode_texts(onnx, texts), predictor.encode_texts(texts), atol=1e-5)
    assert weights_id(onnx) == predictor.weights_id != load(model).weights_id


def test_validation_tells_the_recall_of_each_width(folder: Path) -> None:
    from clip_core.data.store import open_store

    store, predictor = open_store(folder / "store"), load(folder / "model")
    told = quick_recall(predictor.encode_texts, lambda _: encode_pictures(predictor, store), store, (4, 2))
    narrow_one = load(folder / "model", width=2)
    alone = quick_recall(narrow_one.encode_texts, lambda _: encode_pictures(narrow_one, store), store)
    name = "text_to_image_mean_recall"
    assert list(told) == [name, f"{name}_width_4", f"{name}_width_2"]
    assert told[f"{name}_width_2"] == alone[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"matryoshka": [32, 64]}}, r"model\.matryoshka: .*each width must be smaller than the one before"),
        ({"model": {"matryoshka": [32]}, "export": {"width": 16}}, r"export: .*width \(16\) must be one of .*\[32\]"),
        ({"export": {"width": 64}}, r"export: .*width \(64\) must be one of model\.matryoshka \[\]"),
        ({"model": {"matryoshka": [128]}}, r"model: .*matryoshka: 128 is not less than embed_dim \(128\)"),
    ],
)
def test_widths_that_were_not_trained_or_do_not_fall_or_are_no_narrower_are_refused(
    changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_params(merged(read_yaml(ROOT / "params.yaml"), changes), ROOT / "params.yaml")

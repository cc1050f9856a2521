"""Validation during training: the same figures as a model in use, with no picture decoded twice."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clip_core.data.store import Store
from clip_core.errors import UserError
from clip_core.evaluate.in_training import RecallInTraining
from clip_core.evaluate.retrieval import quick_recall
from clip_core.inference.predictor import Predictor, encode_pictures
from clip_core.inference.torch_towers import TorchTowers
from clip_core.model.clip import CLIP, make_clip
from clip_core.model.contract import Contract
from clip_core.text import Tokenizer, parse_tokenizer
from tests.sentences import many, sentence_store
from tests.tiny import MADE, tiny_architecture, tiny_store, tiny_tokenizer_json


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("validation") / "valid")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The places of the pictures that were read."""
    places: list[int] = []
    real = Store.image_bytes
    monkeypatch.setattr(Store, "image_bytes", lambda self, index: places.append(index) or real(self, index))
    return places


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each call of the image tower whether it computed in bf16."""
    calls: list[bool] = []
    real = CLIP.encode_images

    def encode(self: CLIP, pixels: Tensor) -> Tensor:
        calls.append(torch.is_autocast_enabled("cpu"))
        return real(self, pixels)

    monkeypatch.setattr(CLIP, "encode_images", encode)
    return calls


def model_of(store: Store, seed: int = 1) -> tuple[CLIP, Tokenizer, Contract]:
    tokenizer_json = tiny_tokenizer_json(store)
    architecture = tiny_architecture(tokenizer_json).model_copy(update={"matryoshka": (4,)})
    contract = Contract(architecture=architecture, made=MADE)
    return make_clip(architecture, seed).eval(), parse_tokenizer(tokenizer_json, 16), contract


def recall_of(model: CLIP, tokenizer: Tokenizer, contract: Contract, store: Store) -> dict[str, float]:
    """The slow way: a predictor that decodes what it is asked for."""
    predictor = Predictor(TorchTowers(model), tokenizer, contract, "here")
    return quick_recall(predictor.encode_texts, lambda images: encode_pictures(predictor, store)[images], store, (4,))


@pytest.mark.parametrize("memory", [2**30, 0])
def test_the_figures_are_those_of_each_model_in_use_and_pictures_in_memory_are_read_once(
    memory: int, store: Store, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_core.data.pictures.MEMORY", memory)
    model, tokenizer, contract = model_of(store)
    recall = RecallInTraining(store, tokenizer, contract, "fp32", is_image_side_fixed=False)
    models = [model, *(model_of(store, seed)[0] for seed in (2, 3))]
    found = [recall(model) for model in models]
    assert len(read) == 36 * (1 if memory else 3)
    wanted = [recall_of(model, tokenizer, contract, store) for model in models]
    assert found == wanted and wanted[0] != wanted[1]


def test_pictures_are_encoded_once_where_only_texts_train(store: Store, read: list[int], encoded: list[bool]) -> None:
    model, tokenizer, contract = model_of(store)
    recall = RecallInTraining(store, tokenizer, contract, "fp32", is_image_side_fixed=True)
    first = recall(model)
    model.text_projection.load_state_dict(model_of(store, seed=2)[0].text_projection.state_dict())
    second = recall(model)
    assert (len(read), len(encoded)) == (36, 1)
    assert second == recall_of(model, tokenizer, contract, store) != first


@pytest.mark.parametrize("is_fixed", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_pictures_are_encoded_in_the_training_s_precision(
    precision: str, is_fixed: bool, store: Store, encoded: list[bool]
) -> None:
    model, tokenizer, contract = model_of(store)
    RecallInTraining(store, tokenizer, contract, precision, is_image_side_fixed=is_fixed)(model)
    assert encoded == [precision == "bf16"]


def test_a_broken_picture_is_an_error_as_everywhere_where_figures_are_made(tmp_path: Path) -> None:
    model, tokenizer, contract = model_of(tiny_store(tmp_path / "whole"))
    broken = sentence_store(tmp_path / "made", many(1, 12), broken=["00-004"])
    with pytest.raises(UserError, match=r"images\[4\]: broken picture"):
        RecallInTraining(broken, tokenizer, contract, "fp32", is_image_side_fixed=False)(model)

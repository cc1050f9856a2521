"""The model: transformers' BERT and timm's towers, joined as CLIP."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_core.config.model import ImageTower
from clip_core.image import Preprocessing, pixels_of
from clip_core.model.clip import CLIP, make_clip
from clip_core.model.image_tower import make_image_tower
from clip_core.model.registry import MODELS
from clip_core.model.text_start import text_start
from clip_core.text import build_tokenizer, parse_tokenizer
from tests.test_image import HALVES
from tests.tiny import tiny_architecture, tiny_clip

TINY = MODELS["tiny"]
TOKEN_IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 4, 3, 0, 0]])


@pytest.fixture(scope="module")
def model() -> CLIP:
    return tiny_clip().eval()


def bert_folder(folder: Path, **changes: object) -> torch.nn.Module:
    """A BERT as Hugging Face saves one, with its pooler, and its vocabulary; gives the reference model."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=8,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=24,
        max_position_embeddings=20,
    )
    reference = BertModel(config).eval()
    reference.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | changes))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n一\n只\n猫\n")
    return reference


def test_the_text_tower_is_transformers_bert(tmp_path: Path) -> None:
    reference = bert_folder(tmp_path)
    start = text_start(TINY, 16, str(tmp_path), [])
    architecture = tiny_architecture(start.tokenizer_json).model_copy(update={"text_tower": start.architecture})
    model = make_clip(architecture, seed=1).eval()
    start.fill(model.text_tower)

    with torch.no_grad():
        ours = model.text_tower(TOKEN_IDS)
        theirs = reference(TOKEN_IDS, attention_mask=(TOKEN_IDS != 0).long()).last_hidden_state[:, 0]

    assert torch.allclose(ours, theirs, atol=1e-6)
    assert start.architecture.options["hidden_size"] == 12  # the folder's architecture, not that of params
    token_ids = parse_tokenizer(start.tokenizer_json, 16)(["一只猫"])
    assert token_ids.tolist() == [[2, 5, 6, 7, 3]]


def test_a_bert_of_weights_only_is_read_like_one_of_safetensors(tmp_path: Path) -> None:
    reference = bert_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(
        {f"bert.{name}": tensor for name, tensor in reference.state_dict().items()}, tmp_path / "pytorch_model.bin"
    )
    start = text_start(TINY, 16, str(tmp_path), [])
    tower = make_clip(
        tiny_architecture(start.tokenizer_json).model_copy(update={"text_tower": start.architecture}), 1
    ).text_tower

    start.fill(tower)

    words = tower.encoder.embeddings.word_embeddings.weight
    assert torch.equal(words, reference.state_dict()["embeddings.word_embeddings.weight"])


@pytest.mark.parametrize(
    ("changes", "context_length", "message"),
    [
        ({"hidden_act": "relu"}, 16, "hidden_act is 'relu'"),
        ({"vocab_size": 9}, 16, "vocab_size is 9, but vocab.txt has 8 tokens"),
        ({}, 21, "context_length is 21, but .* has 20 positions"),
    ],
)
def test_a_bert_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], context_length: int, message: str
) -> None:
    bert_folder(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        text_start(TINY, context_length, str(tmp_path), [])


def test_weights_that_are_not_the_configs_are_refused_by_name(tmp_path: Path) -> None:
    bert_folder(tmp_path, num_hidden_layers=3)
    start = text_start(TINY, 16, str(tmp_path), [])
    tower = make_clip(
        tiny_architecture(start.tokenizer_json).model_copy(update={"text_tower": start.architecture}), 1
    ).text_tower
    with pytest.raises(ValueError, match=r"encoder\.layer\.2"):
        start.fill(tower)


def test_a_folder_that_is_no_bert_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no BERT folder: it has no vocab\.txt"):
        text_start(TINY, 16, str(tmp_path), [])


def test_padding_does_not_change_a_texts_features(model: CLIP) -> None:
    with torch.no_grad():
        alone, padded = model.encode_texts(TOKEN_IDS[1:, :3]), model.encode_texts(TOKEN_IDS)[1:]
    assert torch.allclose(alone, padded, atol=1e-6)


def test_features_are_unit_vectors(model: CLIP) -> None:
    pixels = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        for features in (model.encode_images(pixels), model.encode_texts(TOKEN_IDS)):
            assert features.shape[1] == 8
            assert torch.allclose(features.norm(dim=1), torch.ones(len(features)), atol=1e-6)


def test_pixels_are_normalised_inside_the_model_as_clip_does(model: CLIP) -> None:
    pixels = torch.from_numpy(pixels_of(HALVES, 32, Preprocessing()))[None]
    mean = np.array([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = np.array([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    normalised = torch.from_numpy((pixels.numpy() / 255 - mean) / std).float()
    with torch.no_grad():
        features = model.image_projection(model.image_tower(normalised))
        assert torch.allclose(model.encode_images(pixels), features / features.norm(), atol=1e-6)


def test_the_logits_factor_starts_at_fourteen_and_stays_between_1_and_100(model: CLIP) -> None:
    assert math.isclose(model.logit_scale.exp().item(), 1 / 0.07, rel_tol=1e-6)
    for value, kept in [(9.0, 100.0), (-1.0, 1.0), (1.0, math.e)]:
        copy = tiny_clip()
        copy.logit_scale.data.fill_(value)
        copy.clamp_logit_scale()
        assert math.isclose(copy.logit_scale.exp().item(), kept, rel_tol=1e-5)


def test_a_new_model_is_a_function_of_the_seed() -> None:
    torch.manual_seed(3)
    first = tiny_clip(seed=1).state_dict()
    drawn = torch.rand(1)
    again, other = tiny_clip(seed=1).state_dict(), tiny_clip(seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)  # the caller's random numbers are untouched


def test_the_projections_have_no_bias() -> None:
    names = set(tiny_clip(build_tokenizer(["猫"])).state_dict())
    assert {"image_projection.weight", "text_projection.weight", "logit_scale"} <= names
    assert not names & {"image_projection.bias", "text_projection.bias", "mean", "std"}
    assert not any("pooler" in name or "position_ids" in name for name in names)


@pytest.mark.parametrize(("name", "options"), [("convnext_atto", {}), ("vit_tiny_patch16_224", {})])
def test_another_tower_of_timms_can_be_named(name: str, options: dict[str, Any]) -> None:
    tower = make_image_tower(ImageTower(name=name, options=options), 32)
    assert tower.module(torch.zeros(2, 3, 32, 32)).shape == (2, tower.width)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet10", {}, "no model 'resnet10'; similar names: .*resnet10t"),
        ("resnet10t", {"colour": 1}, "does not take .*colour"),
    ],
)
def test_a_tower_that_timm_can_not_make_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_image_tower(ImageTower(name=name, options=options), 32)

"""Any image tower of timm and any text encoder of transformers go through the stages themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clip_core.config.model import TextTower as TextTowerParams
from clip_core.model.contract import TextArchitecture
from clip_core.model.text_tower import TextTower, with_positions
from clip_core.params_file import read_yaml
from clip_core.recipe import merged
from tests.conftest import ROOT
from tests.stage_calls import call
from tests.tiny import tiny_store
from tests.variants import VIT

CONVNEXT = {"name": "convnext_atto", "options": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
DISTILBERT = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
ENCODERS: dict[str, dict[str, Any]] = {
    "albert": {**SMALL, "embedding_size": 8},
    "distilbert": DISTILBERT,
    "electra": {**SMALL, "embedding_size": 8},
    "modernbert": SMALL,
    "roberta": SMALL,
}

Trained = Callable[..., Path]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    for split in ("train", "valid"):
        tiny_store(folder / split)
    return folder


@pytest.fixture
def trained(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Runs init and both stages, one step each, on the model and with the changes that it is told."""
    monkeypatch.chdir(tmp_path)

    def run(model: dict[str, Any], **changes: Any) -> Path:
        step = {"schedule": {"num_steps": 1, "warmup_steps": 0}, "global_batch": 8}
        common = {"name": "custom", "image_size": 32, "context_length": 16, "matryoshka": [], "embed_dim": 8}
        random = {"from": "random", "path": "pretrained"}
        trained = {"init": {"warm_start": step}, "stage1": step, "stage2": step | changes}
        small = {"model": common | model, "text_start": random} | trained
        params_file = tmp_path / "params.yaml"
        params_file.write_text(json.dumps(merged(read_yaml(ROOT / "params.yaml"), small)))
        call("text_start", params_file, packed, tmp_path / "text", tmp_path / "text.json")
        call("init", params_file, packed, tmp_path / "init", tmp_path / "curves", tmp_path / "text")
        call("stage1", params_file, packed, tmp_path / "init", tmp_path / "stage1", tmp_path / "curves1")
        call("stage2", params_file, packed, tmp_path / "stage1", tmp_path / "stage2", tmp_path / "curves2")
        return tmp_path

    return run


def moved(before: Path, after: Path) -> set[str]:
    """The tensors that a stage changed."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.parametrize("encoder", ["roberta", "distilbert"])
def test_a_convnext_and_another_encoder_train_a_step_of_each_stage(encoder: str, trained: Trained) -> None:
    tower = {"name": encoder, "options": ENCODERS[encoder]}
    folder = trained({"image_tower": CONVNEXT, "text_tower": tower})
    in_stage1, in_stage2 = moved(folder / "init", folder / "stage1"), moved(folder / "stage1", folder / "stage2")
    assert not any(name.startswith("image_") for name in in_stage1)
    assert {"text_projection.weight", "text_tower.encoder.embeddings.word_embeddings.weight"} <= in_stage1 & in_stage2
    assert {"image_projection.weight", "image_tower.stem.0.weight"} <= in_stage2
    assert not any("pooler" in name for name in load_file(folder / "stage2" / "model.safetensors"))


def test_all_variants_at_once_train_and_leave_a_plain_model(trained: Trained) -> None:
    folder = trained(
        {"image_tower": VIT.model_dump(mode="json"), "text_tower": {"name": "bert", "options": SMALL},
         "matryoshka": [4, 2]},
        micro_batch=3, precision="bf16", checkpoint_activations=True, patch_dropout=0.5,
        lora={"rank": 2, "alpha": 4, "dropout": 0.1},
    )  # fmt: skip
    adapted = moved(folder / "stage1", folder / "stage2")
    assert {"logit_scale", "image_projection.weight", "image_tower.blocks.0.attn.qkv.weight"} <= adapted
    assert "image_tower.pos_embed" not in adapted
    assert json.loads((folder / "stage2" / "model.json").read_text())["architecture"]["matryoshka"] == [4, 2]
    header = (folder / "curves2" / "validation.csv").read_text().split("\n")[0]
    recall = "text_to_image_mean_recall"
    assert header == f"step,{recall},{recall}_width_4,{recall}_width_2"


def text_tower(name: str, options: dict[str, Any]) -> TextTower:
    options = with_positions(TextTowerParams(name=name, options=options), 16)
    torch.manual_seed(1)
    return TextTower(TextArchitecture(name=name, options=options, vocab_size=30)).eval()


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_text_s_padding_and_its_neighbours_do_not_matter(name: str) -> None:
    tower = text_tower(name, ENCODERS[name])
    token_ids = torch.tensor([[2, 5, 1, 7, 3], [2, 6, 3, 0, 0]])
    with torch.no_grad():
        together = tower(token_ids)
        assert torch.allclose(tower(torch.nn.functional.pad(token_ids, (0, 11))), together, atol=1e-5)
        assert torch.allclose(tower(token_ids[1:, :3])[0], together[1], atol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-3)
        assert tower(torch.arange(3, 19)[None]).shape == (1, tower.width)  # as long as the model allows


@pytest.mark.parametrize("name", list(ENCODERS))
def test_every_weight_of_the_encoder_learns(name: str) -> None:
    tower = text_tower(name, ENCODERS[name]).train()
    tower(torch.tensor([[2, 5, 1, 7, 3]])).square().sum().backward()
    assert [name for name, parameter in tower.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("robertta", {}, "transformers has no text encoder 'robertta'; similar names: roberta"),
        ("gpt2", {}, "transformers has no text encoder 'gpt2'"),
        ("bart", {}, "bart is an encoder with a decoder"),
        ("fnet", {"hidden_size": 16, "num_hidden_layers": 1}, "fnet does not mask a text's padding"),
        ("convbert", {**SMALL, "embedding_size": 16}, "convbert does not mask a text's padding"),
        ("roberta", {"hidden_sise": 3}, "roberta has no hidden_sise; it has .*hidden_size"),
    ],
)
def test_what_is_no_text_encoder_here_is_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.text_tower\.\w+: .*{message}"):
        text_tower(name, options)

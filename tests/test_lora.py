"""LoRA: adapters train, everything else stays, and what is saved is a plain model."""

import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from clip_core.config.intervals import Interval
from clip_core.config.stage2 import Lora
from clip_core.config.training import Training
from clip_core.data.pictures import decoded
from clip_core.data.store import Store
from clip_core.image import Preprocessing
from clip_core.model.clip import CLIP
from clip_core.model.weights import load_weights, save_weights
from clip_core.text import parse_tokenizer
from clip_core.train.activations import checkpoint_activations
from clip_core.train.loop import train
from clip_core.train.lora import add_adapters, merge_adapters
from tests.test_grad_cache import assert_close, batch_of, step, step_keeping_all, with_micro_batch
from tests.test_resume import Stopped, StoppingBatches
from tests.tiny import IMAGE_SIZE, MADE, tiny_clip, tiny_store, tiny_tokenizer_json, tiny_training
from tests.variants import vit_clip

LORA = Lora(rank=2, alpha=4, dropout=0.1)
PARAMS = tiny_training(num_steps=8)
INTERVAL = Interval(log_every=2, save_every=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("lora") / "store")


def run(store: Store, work: Path, params: Training = PARAMS, stop_at: int = 0) -> CLIP:
    """Trains adapters in `work` as a new process would."""
    tokenizer_json = tiny_tokenizer_json(store)
    pictures = decoded(store, IMAGE_SIZE, Preprocessing())
    batches = StoppingBatches(store, pictures, parse_tokenizer(tokenizer_json, 16), params, seed=1)
    batches.stop_at = stop_at
    torch.manual_seed(time.time_ns())  # whatever was drawn before must not matter
    model = vit_clip(tokenizer_json)
    add_adapters(model, LORA, seed=1)
    work.mkdir(parents=True, exist_ok=True)
    train(batches, model, model.encode_images, work, INTERVAL)
    return model


@pytest.fixture(scope="module")
def trained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The state of an undisturbed run."""
    return run(store, tmp_path_factory.mktemp("trained") / "tiny" / "run").state_dict()


def features_of(model: CLIP) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.eval().encode_images(batch_of().images), model.encode_texts(batch_of().token_ids)


def test_only_adapters_and_logit_scale_train(store: Store, trained: dict[str, Tensor]) -> None:
    start = vit_clip(tiny_tokenizer_json(store)).state_dict()
    frozen = {name: tensor for name, tensor in trained.items() if "lora_" not in name and name != "logit_scale"}
    assert len(frozen) == len(start) - 1
    assert all(torch.equal(tensor, start[name.replace("base_layer.", "")]) for name, tensor in frozen.items())
    raised = [tensor for name, tensor in trained.items() if "lora_B" in name]  # start as zeros
    assert all(tensor.any() for tensor in raised)
    for layer in ("image_tower.blocks.1.attn.qkv", "image_tower.blocks.1.mlp.fc2", "image_projection"):
        assert f"{layer}.lora_A.default.weight" in trained
    for layer in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
        assert f"text_tower.encoder.encoder.layer.1.{layer}.lora_A.default.weight" in trained
    assert "text_projection.lora_A.default.weight" in trained


def test_new_adapters_change_nothing_and_are_a_function_of_the_seed() -> None:
    plain, one, again, other = (vit_clip() for _ in range(4))
    for model, seed in ((one, 1), (again, 1), (other, 2)):
        add_adapters(model, LORA, seed)
    assert all(torch.equal(a, b) for a, b in zip(features_of(plain), features_of(one), strict=True))
    name = "image_projection.lora_A.default.weight"
    assert torch.equal(one.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_merged_weights_are_a_plain_model_with_the_same_features(
    store: Store, tmp_path: Path, trained: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer_json = tiny_tokenizer_json(store)
    model = vit_clip(tokenizer_json)
    add_adapters(model, LORA, seed=2)
    model.load_state_dict(trained)
    unmerged = features_of(model)
    assert not torch.allclose(unmerged[0], features_of(vit_clip(tokenizer_json))[0], atol=1e-3)

    merge_adapters(model)
    save_weights(model, tokenizer_json, tmp_path / "merged", MADE)

    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails now
    loaded = load_weights(tmp_path / "merged")
    assert loaded.state_dict().keys() == vit_clip(tokenizer_json).state_dict().keys()
    for found, wanted in zip(features_of(loaded), unmerged, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_merging_a_model_without_adapters_changes_nothing() -> None:
    model, wanted = vit_clip(), vit_clip().state_dict()
    merge_adapters(model)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("stops", [(3,), (5, 7)])
def test_stopping_and_resuming_changes_nothing(
    stops: tuple[int, ...], store: Store, tmp_path: Path, trained: dict[str, Tensor]
) -> None:
    work = tmp_path / "tiny" / "run"
    for stop in stops:
        with pytest.raises(Stopped):
            run(store, work, stop_at=stop)
    found = run(store, work).state_dict()
    assert all(torch.equal(trained[name], found[name]) for name in trained)


def test_a_checkpoint_holds_only_what_trains(store: Store, tmp_path: Path) -> None:
    work = tmp_path / "tiny" / "run"
    with pytest.raises(Stopped):
        run(store, work, stop_at=5)
    with safe_open(work / "checkpoint-00000003.safetensors", framework="pt") as file:
        assert all("lora_" in name or "logit_scale" in name for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_train_with_gradient_caching_and_activation_checkpoints(precision: str) -> None:
    models = vit_clip(dropout=0.0), vit_clip(dropout=0.0)
    for model in models:
        add_adapters(model, LORA.model_copy(update={"dropout": 0.0}), seed=1)
    checkpoint_activations(models[1])
    wanted = step(models[0], with_micro_batch(None))
    found = step(models[1], with_micro_batch(5, precision=precision))
    if precision == "fp32":
        assert_close(found, wanted)
    assert found[1].keys() == wanted[1].keys()
    assert all("lora_" in name or name == "logit_scale" for name in found[1])


def test_both_passes_of_gradient_caching_drop_the_same_inputs_of_the_adapters() -> None:
    models = vit_clip(dropout=0.0), vit_clip(dropout=0.0)
    for model in models:
        add_adapters(model, LORA.model_copy(update={"dropout": 0.5}), seed=1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # as zeros they would hide what is dropped
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    assert_close(step(models[0], with_micro_batch(4)), step_keeping_all(models[1], 4))


def test_a_tower_with_batch_statistics_is_named() -> None:
    with pytest.raises(ValueError, match=r"stage2\.lora: the image tower resnet10t learns batch statistics"):
        add_adapters(tiny_clip(), LORA, seed=1)

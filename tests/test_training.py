"""Training: what moves, what stays, and that it is a function of its arguments."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_core.config.training import Optimizer, Schedule, Training
from clip_core.data.batches import Pairs, decoded
from clip_core.data.store import Store
from clip_core.image import Preprocessing
from clip_core.model.clip import CLIP
from clip_core.text import parse_tokenizer
from clip_core.train.backward import encode_texts
from clip_core.train.feature_cache import freeze_image_tower, image_features_of
from clip_core.train.loop import Validation, train
from clip_core.train.optimizer import lr_at, make_optimizer
from clip_core.train.warm_start import english_clip, take_image_side
from tests.tiny import ENGLISH, IMAGE_SIZE, tiny_architecture, tiny_clip, tiny_store, tiny_tokenizer_json, tiny_training


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("training") / "store")


def pairs_of(store: Store, params: Training, seed: int = 1) -> Pairs:
    pictures = decoded(store, IMAGE_SIZE, Preprocessing())
    return Pairs(store, pictures, parse_tokenizer(tiny_tokenizer_json(store), 16), params, seed)


def trained(store: Store, params: Training, work: Path, seed: int = 1) -> CLIP:
    model = tiny_clip(tiny_tokenizer_json(store))
    train(params, model, pairs_of(store, params, seed), work, model.encode_images)
    return model


def same(one: CLIP, other: CLIP) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_learning_rate_climbs_then_falls_along_a_cosine() -> None:
    schedule = Schedule(num_steps=14, num_epochs=None, warmup_steps=4, peak_lr=0.8)
    by_hand = {1: 0.2, 2: 0.4, 4: 0.8, 5: 0.8, 10: 0.4, 14: 0.4 * (1 + math.cos(0.9 * math.pi))}
    assert all(math.isclose(lr_at(step, schedule, 14), lr) for step, lr in by_hand.items())
    assert lr_at(1, Schedule(num_steps=1, num_epochs=None, warmup_steps=0, peak_lr=0.8), 1) == 0.8
    few = Schedule(num_steps=None, num_epochs=1, warmup_steps=100, peak_lr=0.8)
    assert [round(lr_at(step, few, 8), 3) for step in (1, 2, 3, 6)] == [0.4, 0.8, 0.8, 0.4]


def test_only_matrices_decay() -> None:
    params = Optimizer(beta1=0.9, beta2=0.98, eps=1e-6, weight_decay=0.05, max_grad_norm=1.0)
    model = tiny_clip()
    decay_of = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(model, params).param_groups
        for parameter in group["params"]
    }
    decays = {name: decay_of[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(decays) == len(decay_of)
    for name, decay in decays.items():
        is_vector = name.endswith(".bias") or "LayerNorm" in name or ".bn" in name or name == "logit_scale"
        is_norm_in_a_sequence = model.get_parameter(name).ndim == 1
        assert decay == (0.0 if is_vector or is_norm_in_a_sequence else 0.05), name


def test_a_vector_without_gradient_does_not_move_and_a_matrix_shrinks() -> None:
    layer = torch.nn.Linear(2, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    params = Optimizer(beta1=0.9, beta2=0.98, eps=1e-6, weight_decay=0.5, max_grad_norm=1.0)
    optimizer = make_optimizer(layer, params)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(layer.weight, weight * 0.95)
    assert torch.equal(layer.bias, bias)


def test_the_loss_falls(store: Store, tmp_path: Path) -> None:
    trained(store, tiny_training(num_steps=24), tmp_path / "tiny" / "run")
    losses = [float(row.split(",")[1]) for row in (tmp_path / "tiny" / "run" / "train.csv").read_text().split()[1:]]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_the_same_params_give_the_same_weights_and_curve_to_the_bit(store: Store, tmp_path: Path) -> None:
    params = tiny_training()
    works = [tmp_path / "tiny" / name for name in ("one", "two", "other")]
    one, two, other = (trained(store, params, work, seed) for work, seed in zip(works, (1, 1, 2), strict=True))
    assert same(one, two)
    assert not same(one, other)
    assert (works[0] / "train.csv").read_bytes() == (works[1] / "train.csv").read_bytes()


def test_stage_1_leaves_the_image_tower_as_it_was_to_the_bit(store: Store, tmp_path: Path) -> None:
    params = tiny_training()
    model = tiny_clip(tiny_tokenizer_json(store))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    freeze_image_tower(model)
    features = image_features_of(model, decoded(store, IMAGE_SIZE, Preprocessing()), len(store))
    pairs = Pairs(store, lambda rows: features[rows], parse_tokenizer(tiny_tokenizer_json(store), 16), params, 1)
    validation = Validation(3, lambda model: {"mean": model.encode_images(torch.zeros(2, 3, 32, 32)).mean().item()})

    train(params, model, pairs, tmp_path / "tiny" / "run", lambda cached: cached, validation)

    after = model.state_dict()
    image_side = {name for name in before if name.startswith("image_")}  # running statistics too
    assert any(name.endswith("running_mean") for name in image_side)
    assert all(torch.equal(before[name], after[name]) for name in image_side)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"logit_scale", "text_projection.weight"} <= moved
    rows = (tmp_path / "tiny" / "run" / "validation.csv").read_text().split()
    assert [row.split(",")[0] for row in rows] == ["step", "3", "6", "9", "12"]


def test_cached_features_are_the_models_own_of_the_unchanged_pictures(store: Store) -> None:
    model = tiny_clip(tiny_tokenizer_json(store))
    pictures = decoded(store, IMAGE_SIZE, Preprocessing())
    features = image_features_of(model, pictures, len(store))
    with torch.no_grad():
        assert torch.allclose(features[5], model.eval().encode_images(pictures(np.array([5])))[0], atol=1e-6)


def test_pictures_too_many_for_memory_are_decoded_as_they_are_needed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.array([30, 2, 2])
    kept = decoded(store, IMAGE_SIZE, Preprocessing())(rows)
    monkeypatch.setattr("clip_core.data.batches.MEMORY", 0)
    assert torch.equal(decoded(store, IMAGE_SIZE, Preprocessing())(rows), kept)


def test_texts_encoded_apart_by_length_are_the_same_texts(store: Store) -> None:
    model = tiny_clip(tiny_tokenizer_json(store)).eval()
    token_ids = pairs_of(store, tiny_training()).batch(1).token_ids
    for some in (token_ids, token_ids[:1], token_ids[:3]):
        assert torch.allclose(encode_texts(model, some), model.encode_texts(some), atol=1e-6)


def test_a_batch_depends_on_its_step_alone(store: Store) -> None:
    forwards, single = pairs_of(store, tiny_training()), pairs_of(store, tiny_training())
    batches = [forwards.batch(step) for step in range(1, 12)]
    again = single.batch(9)
    assert torch.equal(batches[8].images, again.images)
    assert torch.equal(batches[8].token_ids, again.token_ids)


def test_a_loss_that_is_no_number_stops_the_training(store: Store, tmp_path: Path) -> None:
    params = tiny_training()
    model = tiny_clip(tiny_tokenizer_json(store))
    model.text_projection.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"the loss is nan at step 1: lower `schedule\.peak_lr`"):
        train(params, model, pairs_of(store, params), tmp_path / "tiny" / "run", model.encode_images)
    assert not list((tmp_path / "tiny" / "run").glob("checkpoint*"))


def test_the_warm_start_gives_its_image_side_and_nothing_of_its_texts(store: Store, tmp_path: Path) -> None:
    architecture = tiny_architecture(tiny_tokenizer_json(store))
    english = english_clip(tiny_training(captions=ENGLISH), architecture, store, tmp_path / "init" / "run", seed=1)
    model = tiny_clip(tiny_tokenizer_json(store), seed=2)
    texts = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("text_")}

    take_image_side(model, english)

    source, after = english.state_dict(), model.state_dict()
    assert all(torch.equal(after[name], source[name]) for name in after if not name.startswith("text_"))
    assert all(torch.equal(after[name], texts[name]) for name in texts)

"""Training: what moves, what stays, and that it is a function of its arguments."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.optimizer import register_optimizer_step_pre_hook

from clip_core.config.intervals import Interval
from clip_core.config.training import LrShares, NoAugmentation, Schedule, Torch, Training
from clip_core.data.augmentation import augment
from clip_core.data.batches import Batch, TrainingBatches
from clip_core.data.pictures import AsNeeded, decoded
from clip_core.data.sampler import random_at
from clip_core.data.store import Store, StoreWriter, open_store
from clip_core.errors import UserError
from clip_core.image import Preprocessing
from clip_core.model.clip import CLIP, make_clip
from clip_core.text import parse_tokenizer
from clip_core.train import loop
from clip_core.train.backward import compute_as, encode_texts
from clip_core.train.feature_cache import freeze_image_tower, image_features_of
from clip_core.train.log import Progress, curve
from clip_core.train.loop import train
from clip_core.train.mfu import PEAKS, forward_flops
from clip_core.train.optimizer import lr_shares, make_optimizer, set_lr
from clip_core.train.schedule import lr_at
from clip_core.train.warm_start import english_clip, take_image_side
from clip_core.train.watch import RECALL, Validation
from tests.tiny import (
    ENGLISH,
    IMAGE_SIZE,
    INTERVAL,
    tiny_architecture,
    tiny_clip,
    tiny_store,
    tiny_tokenizer_json,
    tiny_training,
)
from tests.variants import vit_clip

EVERY_STEP = Interval(log_every=1, save_every=6)
BATCH = Batch(torch.zeros(4, 3, 16, 16), torch.ones(4, 4, dtype=torch.int64))  # of tokens as many as one text of 16 has


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("training") / "store")


def batches_of(store: Store, params: Training, seed: int = 1) -> TrainingBatches:
    pictures = decoded(store, IMAGE_SIZE, Preprocessing())
    return TrainingBatches(store, pictures, parse_tokenizer(tiny_tokenizer_json(store), 16), params, seed)


def trained(store: Store, params: Training, work: Path, seed: int = 1) -> CLIP:
    model = tiny_clip(tiny_tokenizer_json(store))
    train(batches_of(store, params, seed), model, model.encode_images, work, INTERVAL)
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


OPTIMIZER = tiny_training().optimizer


def test_only_matrices_decay() -> None:
    params = OPTIMIZER
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


def test_each_part_and_each_layer_learns_at_its_own_share_of_the_learning_rate() -> None:
    parts = LrShares(image_tower=0.0, text_tower=0.5, projections=1.0)
    shares = lr_shares(vit_clip(), OPTIMIZER.model_copy(update={"lr_shares": parts, "layer_decay": 0.1}))
    assert {share for name, share in shares.items() if name.startswith("image_tower")} == {0.0}
    text = {name.removeprefix("text_tower.encoder."): share for name, share in shares.items()}
    assert text["embeddings.word_embeddings.weight"] == pytest.approx(0.5 * 0.1**3)
    assert text["encoder.layer.0.output.dense.weight"] == pytest.approx(0.5 * 0.1**2)
    assert text["encoder.layer.1.output.dense.weight"] == pytest.approx(0.5 * 0.1)
    assert shares["image_projection.weight"] == shares["text_projection.weight"] == shares["logit_scale"] == 1.0
    model = vit_clip()
    optimizer = make_optimizer(model, OPTIMIZER.model_copy(update={"lr_shares": parts}))
    set_lr(optimizer, 0.8)
    lr_of = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert lr_of[id(model.image_tower.get_parameter("pos_embed"))] == 0
    assert lr_of[id(model.text_projection.weight)] == 0.8


def test_after_a_tower_s_layers_the_learning_rate_is_whole() -> None:
    shares = lr_shares(vit_clip(), OPTIMIZER.model_copy(update={"layer_decay": 0.1}))
    assert shares["image_tower.norm.weight"] == 1.0
    assert shares["image_tower.pos_embed"] == min(shares.values()) == pytest.approx(0.1**3)


def test_a_vector_without_gradient_does_not_move_and_a_matrix_shrinks() -> None:
    layer = torch.nn.Linear(2, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    params = OPTIMIZER.model_copy(update={"weight_decay": 0.5})
    optimizer = make_optimizer(layer, params)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(layer.weight, weight * 0.95)
    assert torch.equal(layer.bias, bias)


def test_the_optimizer_is_adamw_with_the_betas_and_eps_of_the_params() -> None:
    """The oracle is the formula, on one number."""
    params = OPTIMIZER.model_copy(update={"beta1": 0.8, "beta2": 0.7, "eps": 0.01, "weight_decay": 0.5})
    layer = torch.nn.Linear(1, 1, bias=False)
    wanted, mean, square = layer.weight.item(), 0.0, 0.0
    optimizer = make_optimizer(layer, params)
    for step, (lr, gradient) in enumerate([(0.1, 0.03), (0.2, -0.01), (0.1, 0.02)], 1):
        set_lr(optimizer, lr)
        layer.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        mean, square = 0.8 * mean + 0.2 * gradient, 0.7 * square + 0.3 * gradient**2
        way = mean / (1 - 0.8**step) / (math.sqrt(square / (1 - 0.7**step)) + 0.01)
        wanted -= lr * (0.5 * wanted + way)
        assert layer.weight.item() == pytest.approx(wanted, abs=1e-6)


def test_the_loss_falls(store: Store, tmp_path: Path) -> None:
    trained(store, tiny_training(num_steps=24), tmp_path / "tiny" / "run")
    losses = [float(row.split(",")[1]) for row in (tmp_path / "tiny" / "run" / "train.csv").read_text().split()[1:]]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


@pytest.fixture
def stepped() -> Iterator[list[float]]:
    """The length of each gradient that an optimizer has stepped by."""
    lengths: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        lengths.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    hook = register_optimizer_step_pre_hook(note)
    yield lengths
    hook.remove()


def column_of(work: Path, column: str) -> list[float]:
    """A column of the training's curve."""
    names, *rows = [row.split(",") for row in (work / "train.csv").read_text().split()]
    return [float(row[names.index(column)]) for row in rows]


@pytest.mark.parametrize("limit", [0.5, None])
def test_no_step_is_by_a_gradient_longer_than_the_limit(
    limit: float | None, store: Store, tmp_path: Path, stepped: list[float]
) -> None:
    params = tiny_training(num_steps=6)
    optimizer = params.optimizer.model_copy(update={"max_grad_norm": limit})
    trained(store, params.model_copy(update={"optimizer": optimizer}), tmp_path / "tiny" / "run")
    as_they_came = column_of(tmp_path / "tiny" / "run", "grad_norm")
    assert max(as_they_came) > 1
    assert stepped[1::2] == pytest.approx([min(norm, limit or math.inf) for norm in as_they_came], rel=1e-4)


@pytest.mark.parametrize(("start", "kept"), [(math.log(100) + 1, math.log(100)), (-1.0, 0.0)])
def test_the_logits_factor_stays_between_1_and_100(start: float, kept: float, store: Store, tmp_path: Path) -> None:
    model = tiny_clip(tiny_tokenizer_json(store))
    model.logit_scale.data.fill_(start)
    params = tiny_training(num_steps=3)
    train(batches_of(store, params), model, model.encode_images, tmp_path / "tiny" / "run", EVERY_STEP)
    factors = column_of(tmp_path / "tiny" / "run", "logit_scale")
    assert factors[0] == pytest.approx(math.exp(kept))  # one step alone does not lead there
    assert all(1 <= factor <= 100.0001 for factor in factors)


class OneBatch(TrainingBatches):
    """The first batch in every step."""

    def batch(self, step: int) -> Batch:
        return super().batch(1)


@pytest.mark.parametrize(("dropout", "num_losses"), [(0.1, 6), (0.0, 1)])
def test_each_step_drops_other_units(dropout: float, num_losses: int, store: Store, tmp_path: Path) -> None:
    """Weights that do not move and one batch: what changes from step to step is what is dropped."""
    params = tiny_training(num_steps=6)
    still = params.schedule.model_copy(update={"peak_lr": 1e-30})
    tokenizer_json = tiny_tokenizer_json(store)
    batches = OneBatch(
        store,
        decoded(store, IMAGE_SIZE, Preprocessing()),
        parse_tokenizer(tokenizer_json, 16),
        params.model_copy(update={"schedule": still}),
        seed=1,
    )
    model = make_clip(tiny_architecture(tokenizer_json, dropout), seed=1)
    train(batches, model, model.encode_images, tmp_path / "tiny" / "run", EVERY_STEP)
    assert len(set(column_of(tmp_path / "tiny" / "run", "loss"))) == num_losses


def test_the_same_params_give_the_same_weights_and_curve_to_the_bit(store: Store, tmp_path: Path) -> None:
    params = tiny_training()
    works = [tmp_path / "tiny" / name for name in ("one", "two", "other")]
    one, two, other = (trained(store, params, work, seed) for work, seed in zip(works, (1, 1, 2), strict=True))
    assert same(one, two)
    assert not same(one, other)
    assert (works[0] / "train.csv").read_bytes() == (works[1] / "train.csv").read_bytes()


def test_stage_1_leaves_the_image_tower_as_it_was_to_the_bit(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = tiny_training()
    model = tiny_clip(tiny_tokenizer_json(store))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    freeze_image_tower(model)
    features = image_features_of(model, AsNeeded(store, IMAGE_SIZE, Preprocessing(), "exact"), "fp32")
    tokenizer = parse_tokenizer(tiny_tokenizer_json(store), 16)
    batches = TrainingBatches(store, features, tokenizer, params, 1)
    validation = Validation(3, lambda model: {RECALL: model.encode_images(torch.zeros(2, 3, 32, 32)).mean().item()})

    train(batches, model, lambda cached: cached, tmp_path / "tiny" / "run", INTERVAL, validation)

    after = model.state_dict()
    image_side = {name for name in before if name.startswith("image_")}  # running statistics too
    assert any(name.endswith("running_mean") for name in image_side)
    assert all(torch.equal(before[name], after[name]) for name in image_side)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"logit_scale", "text_projection.weight"} <= moved
    rows = (tmp_path / "tiny" / "run" / "validation.csv").read_text().split()
    assert [row.split(",")[0] for row in rows] == ["step", "0", "3", "6", "9", "12"]


def test_pictures_too_many_for_memory_are_decoded_as_they_are_needed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.array([30, 2, 2])
    kept = decoded(store, IMAGE_SIZE, Preprocessing())(rows)
    monkeypatch.setattr("clip_core.data.pictures.MEMORY", 0)
    assert torch.equal(decoded(store, IMAGE_SIZE, Preprocessing())(rows), kept)


def test_texts_encoded_apart_by_length_are_the_same_texts(store: Store) -> None:
    model = tiny_clip(tiny_tokenizer_json(store)).eval()
    token_ids = batches_of(store, tiny_training()).batch(1).token_ids
    for some in (token_ids, token_ids[:1], token_ids[:3]):
        assert torch.allclose(encode_texts(model, some), model.encode_texts(some), atol=1e-6)


def test_a_batch_depends_on_its_step_alone(store: Store) -> None:
    forwards, single = batches_of(store, tiny_training()), batches_of(store, tiny_training())
    batches = [forwards.batch(step) for step in range(1, 12)]
    again = single.batch(9)
    assert torch.equal(batches[8].images, again.images)
    assert torch.equal(batches[8].token_ids, again.token_ids)


def image_ids_of(batches: TrainingBatches, step: int) -> list[str]:
    return [name.partition(": ")[0] for name in batches.named(step)]


def test_no_batch_holds_two_pictures_of_one_concept(store: Store) -> None:
    batches = batches_of(store, tiny_training())
    for step in range(1, 25):
        concepts = [image_id.partition("-")[2] for image_id in image_ids_of(batches, step)]  # a-red-circle
        assert len(set(concepts)) == len(concepts) == 8


def test_pictures_without_a_concept_are_told_apart_by_their_caption(store: Store, tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "store", 2**20)
    for row, image_id in enumerate(store.image_ids):
        writer.add(image_id, store.image_bytes(row))
    names = store.pairs[store.pairs["caption_kind"] == "name"]
    writer.finish(names.assign(concept_id=None))
    batches = batches_of(open_store(tmp_path / "store"), tiny_training())
    for step in range(1, 25):
        concepts = [image_id.partition("-")[2] for image_id in image_ids_of(batches, step)]
        assert len(set(concepts)) == len(concepts) == 8


@pytest.mark.parametrize("step", [1, 7])
def test_a_batch_holds_its_pictures_changed_as_the_params_say(step: int, store: Store) -> None:
    params = tiny_training()
    plain, changed = (
        batches_of(store, params.model_copy(update={"augmentation": augmentation}))
        for augmentation in (NoAugmentation(name="none"), params.augmentation)
    )
    rows = [store.image_ids.index(image_id) for image_id in image_ids_of(changed, step)]
    pictures = decoded(store, IMAGE_SIZE, Preprocessing())(np.array(rows))
    assert torch.equal(plain.batch(step).images, pictures)
    wanted = augment(pictures, params.augmentation, random_at(1, "augmentation", step), 8, slice(0, 8))
    assert torch.equal(changed.batch(step).images, wanted)
    assert not any(torch.equal(found, picture) for found, picture in zip(wanted, pictures, strict=True))


def test_the_share_of_time_that_a_step_waits_for_its_pairs_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 4.0, 10.0, 10.0, 11.0, 20.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = Progress("tiny", 0, 2, 8, tiny_clip())
    for step in (1, 2):
        with progress.waiting():
            pass
        progress(step, BATCH, 0.5, 0.1, True)
    first, second = capsys.readouterr().out.splitlines()
    assert "(30% of the time waiting for them)" in first
    assert "(10% of the time waiting for them)" in second


def test_where_the_peak_is_known_the_flops_that_the_model_needs_are_told_as_a_part_of_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, clock = vit_clip(tiny_tokenizer_json(store)), iter([0.0, 0.0, 1.0, 2.0])
    image, text = forward_flops(model.architecture, model.architecture.context_length)
    monkeypatch.setitem(PEAKS, "CPU", 10.0 * 3 * (4 * image + text))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = Progress("tiny", 0, 2, 4, model)
    with progress.waiting():
        pass
    progress(1, BATCH, 0.5, 0.1, True)
    assert "(5% MFU, 50% of the time" in capsys.readouterr().out


def test_torch_computes_with_the_same_bits_and_in_full_fp32_unless_the_params_give_that_up() -> None:
    params = tiny_training()
    try:
        for is_exact in (False, True):
            switches = Torch(tf32=not is_exact, compile=False, deterministic=is_exact)
            compute_as(params.model_copy(update={"torch": switches}))
            assert torch.are_deterministic_algorithms_enabled() == is_exact
            assert torch.backends.cuda.matmul.allow_tf32 != is_exact
            assert torch.backends.cudnn.allow_tf32 != is_exact
    finally:
        compute_as(params)


def test_curves_for_tensorboard_hold_the_rows_of_the_csv_and_a_resumed_run_goes_on_with_them(tmp_path: Path) -> None:
    work = tmp_path / ".work" / "stage2" / "0123"
    work.mkdir(parents=True)
    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = curve(work / "train.csv", done, is_for_tensorboard=True)
        for step in steps:
            log(step, loss=float(10 * done + step))
    folder = tmp_path / ".work" / "tensorboard" / "stage2" / "0123" / "train"
    seen = EventAccumulator(str(folder)).Reload().Scalars("loss")
    assert {event.step: event.value for event in seen} == {1: 1, 2: 2, 3: 23, 4: 24}
    assert (work / "train.csv").read_text().split() == ["step,loss", "1,1", "2,2", "3,23", "4,24"]


def checkpoints(work: Path) -> list[str]:
    return sorted(file.name for file in work.glob("checkpoint*"))


def poison(monkeypatch: pytest.MonkeyPatch, at_step: int, what: str) -> None:
    """Makes the loss, or the gradient alone, infinite at a step."""
    real, steps = loop.backward, iter(range(1, 100))

    def poisoned(params: Training, model: CLIP, *rest: Any) -> torch.Tensor:
        loss = real(params, model, *rest)
        if next(steps) == at_step:
            if what == "loss":
                return loss * math.inf
            gradient = model.text_projection.weight.grad
            assert gradient is not None
            gradient[0, 0] = math.inf
        return loss

    monkeypatch.setattr(loop, "backward", poisoned)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_a_gradient_that_is_not_finite_stops_before_anything_moves_and_names_the_pairs(
    what: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, work = tiny_training(), tmp_path / "tiny" / "run"
    model, batches = tiny_clip(tiny_tokenizer_json(store)), batches_of(store, params)
    poison(monkeypatch, 12, what)  # the last step
    with pytest.raises(UserError, match=r"at step 12, with learning rate [\d.e-]+, the loss is") as error:
        train(batches, model, model.encode_images, work, INTERVAL)
    assert all(pair in str(error.value) for pair in batches.named(12)[:4])
    assert (work / "not-finite-at-step-12.txt").read_text(encoding="utf-8").splitlines() == batches.named(12)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert checkpoints(work) == ["checkpoint-00000005.safetensors", "checkpoint-00000010.safetensors"]


def test_state_that_is_not_finite_is_never_saved_also_when_the_last_step_makes_it_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, work = tiny_training(), tmp_path / "tiny" / "run"
    model = tiny_clip(tiny_tokenizer_json(store))
    real, steps = CLIP.clamp_logit_scale, iter(range(1, 100))

    def overflow(self: CLIP) -> None:  # as an optimizer's step can, from a gradient that is finite
        real(self)
        if next(steps) == 12:
            self.text_projection.weight.data[0, 0] = math.inf

    monkeypatch.setattr(CLIP, "clamp_logit_scale", overflow)
    with pytest.raises(UserError, match=r"after step 12 these are not finite: model\.text_projection\.weight; nothing"):
        train(batches_of(store, params), model, model.encode_images, work, INTERVAL)
    assert checkpoints(work) == ["checkpoint-00000005.safetensors", "checkpoint-00000010.safetensors"]


def test_a_warm_start_that_is_not_finite_gives_no_weights(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 3, "gradient")
    architecture = tiny_architecture(tiny_tokenizer_json(store))
    with pytest.raises(UserError, match="at step 3"):
        english_clip(tiny_training(captions=ENGLISH), architecture, store, 1, tmp_path / "init" / "run", INTERVAL)


def test_the_warm_start_gives_its_image_side_and_nothing_of_its_texts(store: Store, tmp_path: Path) -> None:
    architecture = tiny_architecture(tiny_tokenizer_json(store))
    english = english_clip(tiny_training(captions=ENGLISH), architecture, store, 1, tmp_path / "init" / "run", INTERVAL)
    model = tiny_clip(tiny_tokenizer_json(store), seed=2)
    texts = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("text_")}

    take_image_side(model, english)

    source, after = english.state_dict(), model.state_dict()
    assert all(torch.equal(after[name], source[name]) for name in after if not name.startswith("text_"))
    assert all(torch.equal(after[name], texts[name]) for name in texts)

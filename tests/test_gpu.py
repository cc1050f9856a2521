"""What a GPU computes, beside what the CPU does: all that can not be known where there is none.

It needs no more packages than `benchmarks.gpu` names and no conftest, so that it runs on a bare machine. That program
also rehearses it, the CPU in the GPU's place.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import clip_core
from clip_core.config.stage2 import Lora
from clip_core.config.training import Training
from clip_core.model.clip import CLIP, make_clip
from clip_core.model.costs import architecture_of
from clip_core.model.precision import pick_device
from clip_core.model.weights import save_weights
from clip_core.text import build_tokenizer
from clip_core.train.activations import checkpoint_activations
from clip_core.train.loop import compile_towers
from clip_core.train.lora import add_adapters
from tests.test_grad_cache import batch_of, step, step_keeping_all, with_micro_batch
from tests.test_resume import Stopped, run
from tests.tiny import MADE, picture, tiny_clip, tiny_store
from tests.variants import vit_clip

DEVICE = pick_device("auto")
IS_REHEARSAL = "CLIP_REHEARSED_GPU" in os.environ
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cpu" and not IS_REHEARSAL, reason="torch finds no CUDA device here"),
]


@pytest.fixture(autouse=True)
def without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in TF32, which is torch's own choice, are only good to three digits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def adapted() -> CLIP:
    model = vit_clip(dropout=0.0)
    add_adapters(model, Lora(rank=2, alpha=4, dropout=0.0), seed=1)
    return model


def without_dropout() -> CLIP:
    return vit_clip(dropout=0.0)


def rn50() -> CLIP:
    architecture = architecture_of("rn50")
    options = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    text_tower = architecture.text_tower.model_copy(update={"options": architecture.text_tower.options | options})
    return make_clip(architecture.model_copy(update={"text_tower": text_tower}), seed=1)


def error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference of a gradient as a share of its length; those of hardly any length count less."""
    assert found.keys() == wanted.keys()
    least = 0.01 * max(float(gradient.norm()) for gradient in wanted.values())
    return max(
        float((found[name].cpu() - wanted[name]).norm()) / max(float(wanted[name].norm()), least) for name in wanted
    )


@pytest.mark.parametrize("micro_batch", [None, 5])
@pytest.mark.parametrize("make", [without_dropout, adapted])
def test_its_gradients_are_those_of_the_cpu(make: Callable[[], CLIP], micro_batch: int | None) -> None:
    params = with_micro_batch(micro_batch)
    (loss, wanted), (found_loss, found) = step(make(), params), step(make().to(DEVICE), params)
    assert abs(found_loss - loss) < 1e-4
    assert error(found, wanted) < 1e-3


def test_a_step_of_rn50_whose_statistics_are_the_batch_s_is_that_of_the_cpu() -> None:
    batch = batch_of(4)
    batch = type(batch)(batch.images.repeat(1, 1, 7, 7), batch.token_ids)  # 224 x 224
    models = rn50(), rn50().to(DEVICE)
    (loss, wanted), (found_loss, found) = (step(model, with_micro_batch(None), batch=batch) for model in models)
    assert abs(found_loss - loss) < 1e-3
    assert error(found, wanted) < 0.02
    for name, buffer in models[0].named_buffers():
        assert torch.allclose(models[1].get_buffer(name).cpu(), buffer, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_in_bf16_its_gradients_point_where_those_of_the_cpu_in_fp32_do(micro_batch: int | None) -> None:
    loss, wanted = step(without_dropout(), with_micro_batch(micro_batch))
    found_loss, found = step(without_dropout().to(DEVICE), with_micro_batch(micro_batch, precision="bf16"))
    assert abs(found_loss - loss) < 0.02
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    for name in ("image_projection.weight", "text_projection.weight"):
        assert torch.cosine_similarity(found[name].cpu().flatten(), wanted[name].flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize("saves_activations", [False, True])
@pytest.mark.parametrize("make", [vit_clip, tiny_clip])
def test_with_dropout_both_passes_over_a_micro_batch_drop_the_same(
    make: Callable[[], CLIP], saves_activations: bool
) -> None:
    cached, plain = make().to(DEVICE), make().to(DEVICE)
    if saves_activations:
        checkpoint_activations(cached)
    (loss, wanted), (found_loss, found) = step_keeping_all(plain, 5), step(cached, with_micro_batch(5))
    assert abs(found_loss - loss) < 1e-4
    assert error(found, {name: gradient.cpu() for name, gradient in wanted.items()}) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_compiled_towers_give_the_same_gradients(micro_batch: int | None) -> None:
    params, compiled = with_micro_batch(micro_batch), without_dropout().to(DEVICE)
    compile_towers(compiled)
    loss, wanted = step(without_dropout(), params)
    for _ in range(2):
        found_loss, found = step(compiled, params)
        assert abs(found_loss - loss) < 1e-4
        assert error(found, wanted) < 1e-3
        compiled.zero_grad(set_to_none=True)


def test_the_memory_of_a_step_is_that_of_its_micro_batch() -> None:
    if DEVICE.type == "cpu":
        pytest.skip("torch counts the memory of a GPU alone")

    def most(params: Training) -> int:
        model = vit_clip().to(DEVICE)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, params, batch=batch_of(192))
        return torch.cuda.max_memory_allocated() - before

    assert most(with_micro_batch(4)) < most(with_micro_batch(None)) / 4


def test_stopping_and_resuming_on_it_changes_no_bit(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store")
    undisturbed = run(store, tmp_path / "undisturbed" / "run")
    for stop in (6, 11):
        with pytest.raises(Stopped):
            run(store, tmp_path / "stopped" / "run", stop)
    resumed = run(store, tmp_path / "stopped" / "run")
    assert resumed.logit_scale.device == DEVICE
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in undisturbed.state_dict().items())


def test_what_is_loaded_computes_on_it_what_it_does_on_the_cpu(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["一只猫", "ok"])
    save_weights(tiny_clip(tokenizer), tokenizer, tmp_path / "weights", MADE)
    cpu, gpu = (clip_core.load(tmp_path / "weights", device=device) for device in ("cpu", DEVICE.type))
    texts = ["一只猫", "", "ok"]
    images = [picture("red", "circle", "a"), picture("blue", "square", "b")]
    assert np.abs(gpu.encode_texts(texts) - cpu.encode_texts(texts)).max() < 1e-5
    assert np.abs(gpu.encode_images(images) - cpu.encode_images(images)).max() < 1e-5
    half = clip_core.load(tmp_path / "weights", device=DEVICE.type, precision="bf16")
    assert (half.encode_images(images) * cpu.encode_images(images)).sum(1).min() > 0.999

"""Gradient caching: the gradient of one large batch with the memory of a small one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from clip_core.config.training import Training
from clip_core.data.batches import Batch
from clip_core.model.clip import CLIP
from clip_core.train import loss as losses
from clip_core.train.backward import backward, encode_texts
from clip_core.train.feature_cache import freeze_image_tower
from clip_core.train.loss import contrastive_loss, nested_loss
from tests.tiny import tiny_clip, tiny_training
from tests.variants import vit_clip


def batch_of(num: int = 12) -> Batch:
    random = np.random.default_rng(0)
    token_ids = random.integers(4, 9, (num, 10)) * (np.arange(10) < random.integers(3, 11, (num, 1)))
    pixels = random.integers(0, 256, (num, 3, 32, 32), dtype=np.uint8)
    return Batch(torch.from_numpy(pixels), torch.from_numpy(token_ids))


def with_micro_batch(size: int | None, **changes: object) -> Training:
    return tiny_training().model_copy(update={"global_batch": 12, "micro_batch": size, **changes})


def step(
    model: CLIP, params: Training, encode_images: Callable[[Tensor], Tensor] | None = None, batch: Batch | None = None
) -> tuple[float, dict[str, Tensor]]:
    """The loss of one step and the gradients that it leaves."""
    model.train().zero_grad(set_to_none=True)
    loss = backward(params, model, encode_images or model.encode_images, batch or batch_of(), seed=5).item()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(
    found: tuple[float, dict[str, Tensor]], wanted: tuple[float, dict[str, Tensor]], rtol: float = 1e-4
) -> None:
    assert abs(found[0] - wanted[0]) < 1e-6
    assert found[1].keys() == wanted[1].keys()
    largest = max(gradient.abs().max() for gradient in wanted[1].values())
    for name, gradient in wanted[1].items():
        assert torch.allclose(found[1][name], gradient, rtol=rtol, atol=0.02 * rtol * float(largest)), name


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 12])
@pytest.mark.parametrize("matryoshka", [(), (4, 2)])
def test_the_gradients_are_those_of_the_plain_step(micro_batch: int, matryoshka: tuple[int, ...]) -> None:
    model = vit_clip(dropout=0.0)
    model.architecture = model.architecture.model_copy(update={"matryoshka": matryoshka})
    assert_close(step(model, with_micro_batch(micro_batch)), step(model, with_micro_batch(None)))


def test_logits_some_rows_at_a_time_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit_clip(dropout=0.0)
    whole = step(model, with_micro_batch(None))
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 5 * 12)
    assert_close(step(model, with_micro_batch(4)), whole)


def step_keeping_all(model: CLIP, micro_batch: int, precision: str = "fp32") -> tuple[float, dict[str, Tensor]]:
    """The oracle: the same step by plain autograd; micro batches encoded once, with their seeds, and all is kept."""
    model.train().zero_grad(set_to_none=True)
    batch, features = batch_of(), []
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for side, (encode, rows) in enumerate(
            [(model.encode_images, batch.images), (lambda ids: encode_texts(model, ids), batch.token_ids)]
        ):
            parts = []
            for number, part in enumerate(rows.split(micro_batch)):
                torch.manual_seed(int(np.random.default_rng((5, side, number)).integers(2**63)))
                parts.append(encode(part.to(model.logit_scale.device)))
            features.append(torch.cat(parts))
    loss = contrastive_loss(features[0], features[1], model.logit_scale)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_with_dropout_both_passes_drop_the_same_and_running_statistics_count_once(tower: str) -> None:
    make = {"vit": vit_clip, "resnet": tiny_clip}[tower]
    model, wanted = make(), make()
    assert_close(step(model, with_micro_batch(5)), step_keeping_all(wanted, 5))
    for name, buffer in model.named_buffers():
        assert torch.allclose(buffer, wanted.get_buffer(name), atol=1e-6), name


def test_dropout_makes_another_step_of_another_seed_only() -> None:
    model, params = vit_clip(), with_micro_batch(4)
    first, again = step(model, params)[0], step(model, params)[0]
    assert first == again
    assert backward(params, model, model.encode_images, batch_of(), seed=6) != first


def test_stage_1_has_no_gradient_on_the_image_side() -> None:
    model = vit_clip(dropout=0.0)
    freeze_image_tower(model)
    with torch.no_grad():
        batch = Batch(model.eval().encode_images(batch_of().images), batch_of().token_ids)
    cached, plain = (
        step(model, with_micro_batch(size), encode_images=lambda cached: cached, batch=batch) for size in (4, None)
    )
    assert_close(cached, plain)
    assert not any(name.startswith("image_") for name in cached[1])


def test_memory_is_that_of_a_micro_batch() -> None:
    def most_saved(params: Training) -> int:
        """Bytes of activations kept for the backward pass at one time, at most."""
        alive = most = 0

        class Kept:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal alive, most
                self.tensor = tensor
                alive += tensor.nbytes
                most = max(most, alive)

            def __del__(self) -> None:
                nonlocal alive
                alive -= self.tensor.nbytes

        model = vit_clip()
        model.train()
        with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            backward(params, model, model.encode_images, batch_of(48), seed=1)
        return most

    def params_of(size: int | None) -> Training:
        return with_micro_batch(size).model_copy(update={"global_batch": 48})

    assert most_saved(params_of(4)) < most_saved(params_of(None)) / 5


def test_matryoshka_trains_the_mean_of_the_losses_of_all_widths() -> None:
    images, texts = (nn.functional.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    scale = torch.tensor(1.5)
    first = nn.functional.normalize(images[:, :3]), nn.functional.normalize(texts[:, :3])
    by_hand = (contrastive_loss(images, texts, scale) + contrastive_loss(*first, scale)) / 2
    assert torch.allclose(nested_loss("contrastive", images, texts, scale, None, (8, 3)), by_hand)
    assert torch.equal(
        nested_loss("contrastive", images, texts, scale, None, (8,)), contrastive_loss(images, texts, scale)
    )

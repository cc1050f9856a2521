"""The losses against their definitions, written out slowly."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from clip_core.train import loss as losses
from clip_core.train.loss import contrastive_loss, sigmoid_loss


def slow_contrastive(images: np.ndarray, texts: np.ndarray, scale: float, kinds: list[int] | None = None) -> float:
    """Each picture picks its text, each text its picture, by softmax, among what is not of its kind: mean surprise."""
    kinds = kinds or list(range(len(images)))
    total = 0.0
    for i in range(len(images)):
        rivals = [j for j in range(len(images)) if j == i or kinds[j] != kinds[i]]
        own = scale * sum(a * b for a, b in zip(images[i], texts[i], strict=True))
        among_texts = sum(math.exp(scale * float(images[i] @ texts[j])) for j in rivals)
        among_images = sum(math.exp(scale * float(texts[i] @ images[j])) for j in rivals)
        total += (math.log(among_texts) - own) / 2 + (math.log(among_images) - own) / 2
    return total / len(images)


def slow_sigmoid(
    images: np.ndarray, texts: np.ndarray, scale: float, bias: float, kinds: list[int] | None = None
) -> float:
    """For each picture and text the surprise at whether they belong together; per pair."""
    total = 0.0
    for i in range(len(images)):
        for j in range(len(texts)):
            if j == i or kinds is None or kinds[j] != kinds[i]:
                logit = scale * float(images[i] @ texts[j]) + bias
                total += math.log(1 + math.exp(-logit if i == j else logit))
    return total / len(images)


def example(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    images, texts = (torch.randn(batch, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return normalize(images), normalize(texts), torch.tensor(math.log(12.5), dtype=torch.float64)


BIAS = torch.tensor(-3.0, dtype=torch.float64)
KINDS = [0, 1, 0, 2, 3, 2, 0]


@pytest.mark.parametrize("at_once", [1, 15, 10**6])  # a row at a time, two rows, all
@pytest.mark.parametrize("kinds", [None, KINDS])
def test_the_losses_equal_their_slow_definitions(
    at_once: int, kinds: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    images, texts, logit_scale = example(7)
    numbered = None if kinds is None else torch.tensor(kinds)
    slow = slow_contrastive(images.numpy(), texts.numpy(), 12.5, kinds)
    assert math.isclose(contrastive_loss(images, texts, logit_scale, numbered).item(), slow, rel_tol=1e-12)
    slow = slow_sigmoid(images.numpy(), texts.numpy(), 12.5, -3.0, kinds)
    assert math.isclose(sigmoid_loss(images, texts, logit_scale, BIAS, numbered).item(), slow, rel_tol=1e-12)


@pytest.mark.parametrize("at_once", [15, 10**6])
@pytest.mark.parametrize("kinds", [None, torch.tensor(KINDS)])
def test_their_gradients_equal_the_quotients_of_differences(
    at_once: int, kinds: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    inputs = [tensor.requires_grad_() for tensor in example(7)]
    gradcheck(lambda *tensors: contrastive_loss(*tensors, kinds), inputs)
    gradcheck(lambda *tensors: sigmoid_loss(*tensors, kinds), [*inputs, BIAS.clone().requires_grad_()])


def test_at_the_size_of_a_training_both_agree_with_torch_s_own_on_all_logits() -> None:
    generator = torch.Generator().manual_seed(3)
    images, texts = (normalize(torch.randn(3000, 64, generator=generator)) for _ in range(2))
    scale, bias = torch.tensor(math.log(100.0)), torch.tensor(-10.0)

    def dense_contrastive(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
        logits, right = logit_scale.exp() * images @ texts.T, torch.arange(len(images))
        return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2

    def dense_sigmoid(images: Tensor, texts: Tensor, logit_scale: Tensor, bias: Tensor) -> Tensor:
        logits = logit_scale.exp() * images @ texts.T + bias
        return -logsigmoid(logits * (2 * torch.eye(len(images)) - 1)).sum() / len(images)

    def found(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        value = loss(*leaves)
        value.backward()
        return [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    for ours, theirs, more in [(contrastive_loss, dense_contrastive, ()), (sigmoid_loss, dense_sigmoid, (bias,))]:
        mine, wanted = (found(loss, images, texts, scale, *more) for loss in (ours, theirs))
        for one, other in zip(mine, wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_a_batch_that_can_not_be_told_apart_costs_the_log_of_its_size() -> None:
    same = torch.ones(6, 1)
    assert math.isclose(contrastive_loss(same, same, torch.tensor(2.0)).item(), math.log(6), rel_tol=1e-6)


def test_pairs_all_of_one_kind_have_nothing_to_be_told_from() -> None:
    same = torch.ones(6, 1)
    assert contrastive_loss(same, same, torch.tensor(2.0), torch.zeros(6, dtype=torch.int64)).item() == 0

"""The loss against its definition, written out slowly."""

import math

import numpy as np
import torch
from torch.nn.functional import normalize

from clip_core.train.loss import contrastive_loss


def slow_loss(images: np.ndarray, texts: np.ndarray, scale: float) -> float:
    """Each picture picks its text, each text its picture, by softmax; the mean surprise."""
    total = 0.0
    for i in range(len(images)):
        own = scale * sum(a * b for a, b in zip(images[i], texts[i], strict=True))
        among_texts = sum(math.exp(scale * float(images[i] @ text)) for text in texts)
        among_images = sum(math.exp(scale * float(texts[i] @ image)) for image in images)
        total += (math.log(among_texts) - own) / 2 + (math.log(among_images) - own) / 2
    return total / len(images)


def example(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    images, texts = (torch.randn(batch, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return normalize(images), normalize(texts), torch.tensor(math.log(12.5), dtype=torch.float64)


def test_the_loss_equals_its_slow_definition() -> None:
    for batch in (1, 2, 7):
        images, texts, logit_scale = example(batch)
        slow = slow_loss(images.numpy(), texts.numpy(), 12.5)
        assert math.isclose(contrastive_loss(images, texts, logit_scale).item(), slow, rel_tol=1e-12, abs_tol=1e-12)


def test_the_gradients_equal_the_slow_definitions_differences() -> None:
    images, texts, logit_scale = example(4)
    inputs = [tensor.requires_grad_() for tensor in (images, texts, logit_scale)]
    contrastive_loss(*inputs).backward()

    def slow() -> float:
        return slow_loss(images.detach().numpy(), texts.detach().numpy(), math.exp(logit_scale.item()))

    for tensor in inputs:
        assert tensor.grad is not None
        values, gradients = tensor.detach().view(-1), tensor.grad.view(-1)
        for i in range(len(values)):
            old, step = values[i].item(), 1e-5
            values[i] = old + step
            above = slow()
            values[i] = old - step
            below = slow()
            values[i] = old
            assert math.isclose((above - below) / (2 * step), gradients[i].item(), rel_tol=1e-6, abs_tol=1e-8)


def test_a_batch_that_can_not_be_told_apart_costs_the_log_of_its_size() -> None:
    same = torch.ones(6, 1)
    assert math.isclose(contrastive_loss(same, same, torch.tensor(2.0)).item(), math.log(6), rel_tol=1e-6)

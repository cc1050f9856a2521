"""Part of `benchmarks.gpu`: the loss, forward and backward, and the same with all logits in memory."""

import json
import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.measure import forget_peak, peak, seconds_of
from clip_core.model.precision import pick_device
from clip_core.train.loss import contrastive_loss

WIDTH = 512  # of the features
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def main(is_tiny: bool) -> None:
    for num in (256, 512) if is_tiny else (8_192, 32_768):
        for name, loss in (("ours", contrastive_loss), ("dense", dense_loss)):
            print(json.dumps({"loss": name, "features": f"{num} x {WIDTH}", **_measured(loss, num)}), flush=True)


def _measured(loss: Loss, num: int) -> dict:
    device = pick_device("auto").type
    features = features_of(num, device)
    held = forget_peak(device)
    try:
        value = forward_and_backward(loss, *features)
        mib = (peak(device) - held) / 2**20
        seconds = seconds_of(lambda: forward_and_backward(loss, *features), 5, device)
    except torch.OutOfMemoryError as error:
        return {"failed": str(error).splitlines()[0]}
    return {"seconds": seconds, "mib_above_features": mib, "value": value}


def features_of(num: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random unit vectors of pictures and of texts, and the log of a trained model's scale."""
    draw = torch.Generator(device).manual_seed(0)
    images, texts = (normalize(torch.randn(num, WIDTH, generator=draw, device=device)).requires_grad_() for _ in "it")
    return images, texts, torch.tensor(math.log(100), device=device, requires_grad=True)


def forward_and_backward(loss: Loss, *features: Tensor) -> float:
    """The loss; the gradients are let go after it, so that each run takes the same memory."""
    value = loss(features[0], features[1], features[2])
    value.backward()
    for tensor in features:
        tensor.grad = None
    return value.item()


def dense_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """As the reference writes it."""
    logits = logit_scale.exp() * image_features @ text_features.T
    right = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2


if __name__ == "__main__":
    main("--tiny" in sys.argv)

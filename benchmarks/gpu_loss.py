"""Part of `benchmarks.gpu`: the loss, forward and backward, and the same with all logits in memory."""

import json
import sys

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.loss import WIDTH, Loss, features_of, forward_and_backward
from benchmarks.measure import forget_peak, peak, seconds_of
from clip_core.model.precision import pick_device
from clip_core.train.loss import contrastive_loss


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


def dense_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """As the reference writes it."""
    logits = logit_scale.exp() * image_features @ text_features.T
    right = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2


if __name__ == "__main__":
    main("--tiny" in sys.argv)

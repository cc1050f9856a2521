"""The loss alone, forward and backward, in time and in memory above its features: against cn_clip's own `get_loss`."""

import math
from argparse import Namespace
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.command import read_options
from benchmarks.compare import compare
from benchmarks.report import keep, machine, spread
from clip_core.train.loss import contrastive_loss

WIDTH = 512  # of the features
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    options = read_options("loss", repeats=5, rows=8192)
    shared: dict = {"task": "loss", "num": options.rows, "threads": options.threads}
    name = f"{options.rows:,} x {WIDTH} / cn_clip"
    found = compare({**shared, "side": "ours"}, {**shared, "side": "cn_clip"}, options.repeats)
    print(f"{name}: {spread(found['ratio'])} times as fast", flush=True)
    result = {"model": "loss", **machine(options.threads), "rows": {name: {"num": options.rows, **found}}}
    keep(f"loss-{options.rows}", result, options.results)
    print(f"memory: with the features' gradients, {4 * 2 * options.rows * WIDTH / 2**20:,.0f} MiB of it")


def make(spec: dict) -> Callable[[], np.ndarray]:
    """Forward and backward over the same features in each run; the loss."""
    loss = {"ours": contrastive_loss, "cn_clip": cn_clip_loss}[spec["side"]]
    features = features_of(spec["num"])
    return lambda: np.array(forward_and_backward(loss, *features))


def features_of(num: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Random unit vectors of pictures and of texts, and the log of a trained model's scale."""
    draw = torch.Generator(device).manual_seed(0)
    images, texts = (
        nn.functional.normalize(torch.randn(num, WIDTH, generator=draw, device=device)).requires_grad_() for _ in "it"
    )
    return images, texts, torch.tensor(math.log(100), device=device, requires_grad=True)


def forward_and_backward(loss: Loss, *features: Tensor) -> float:
    """The loss; the gradients are let go after it, so that each run takes the same memory."""
    value = loss(features[0], features[1], features[2])
    value.backward()
    for tensor in features:
        tensor.grad = None
    return value.item()


def cn_clip_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """`get_loss` of the reference's training with its defaults, for features that are there already."""
    return get_cn_clip_loss(
        lambda *_: (image_features, text_features, logit_scale.exp()), image_features, text_features
    )


def get_cn_clip_loss(model: Callable[..., tuple], images: Tensor, texts: Tensor) -> Tensor:
    """`get_loss` of the reference's training with its defaults: one rank on gloo; on the CPU, where it demands CUDA."""
    import torch.distributed as dist
    from cn_clip.training.train import get_loss

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    options = {"accum_freq": 1, "mask_ratio": 0, "distillation": False, "report_training_batch_acc": False}
    ranks = {"aggregate": True, "gather_with_grad": False, "local_device_rank": 0}
    with patch.object(Tensor, "cuda", lambda tensor, *_, **__: tensor):
        loss, _ = get_loss(model, images, texts, *(nn.CrossEntropyLoss() for _ in "it"), Namespace(**options, **ranks))
    return loss


if __name__ == "__main__":
    main()

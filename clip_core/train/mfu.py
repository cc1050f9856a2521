"""Model FLOPs utilisation: the FLOPs that a model needs of those that its device could do in the same time.

Needed are a forward pass, and twice as many for the backward pass where something trains; nothing for what is computed
again (gradient caching, activation checkpoints). A multiply-add is two (Chowdhery et al. 2022, appendix B).
"""

import torch

from clip_core.data.batches import Batch
from clip_core.model.clip import CLIP
from clip_core.model.contract import Architecture
from clip_core.model.costs import forward_costs, on_meta
from clip_core.model.precision import pick_device

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s in bf16, dense, of the SXM modules (data sheets)


def peak_of_this_device() -> float | None:
    """FLOP/s in bf16; None where it is not known, as of any CPU."""
    device = pick_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return next((peak for chip, peak in PEAKS.items() if chip in name), None)


def forward_flops(architecture: Architecture, num_tokens: int) -> tuple[int, int]:
    """FLOPs of a forward pass of one picture, and of one text of `num_tokens`."""
    model, side = on_meta(architecture), architecture.image_size
    pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8, device="meta")
    token_ids = torch.ones(1, num_tokens, dtype=torch.int64, device="meta")
    return forward_costs(model, model.encode_images, pixels)[0], forward_costs(model, model.encode_texts, token_ids)[0]


class NeededFlops:
    """The FLOPs that `model`, laid out for training, needs for a batch."""

    def __init__(self, model: CLIP) -> None:
        self._length = model.architecture.context_length
        image, text = forward_flops(model.architecture, self._length)
        learns = any(parameter.requires_grad for parameter in model.image_tower.parameters())
        self._image, self._text = image * (3 if learns else 1), 3 * text

    def __call__(self, batch: Batch) -> float:
        """Attention of short texts counts as a part of a long one's: a few per cent too much."""
        are_pixels = batch.images.ndim == 4
        texts = int((batch.token_ids != 0).sum()) / self._length
        return self._image * len(batch.images) * are_pixels + self._text * texts

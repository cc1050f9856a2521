"""The loss of the CLIP paper."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over the global batch: row i of both (batch, embed_dim) belongs together."""
    logits = logit_scale.exp() * image_features @ text_features.T  # (batch, batch)
    right = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2

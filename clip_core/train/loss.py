"""The loss of the CLIP paper, and its mean over widths of the features (Matryoshka, Kusupati et al. 2022)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over the global batch: row i of both (batch, embed_dim) belongs together."""
    logits = logit_scale.exp() * image_features @ text_features.T  # (batch, batch)
    right = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2


def loss_of_rows(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, rows: Tensor) -> Tensor:
    """What `rows` add to the contrastive loss: of all their logits only (rows, batch) are in memory."""
    to_texts = logit_scale.exp() * image_features[rows] @ text_features.T
    to_images = logit_scale.exp() * text_features[rows] @ image_features.T
    wrong = cross_entropy(to_texts, rows, reduction="sum") + cross_entropy(to_images, rows, reduction="sum")
    return wrong / (2 * len(image_features))


def narrowed(features: Tensor, width: int) -> Tensor:
    """The first `width` numbers of each of `features`, L2-normalised again."""
    return features if width == features.shape[1] else normalize(features[:, :width], dim=-1)


def nested_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, widths: Sequence[int]) -> Tensor:
    """The mean contrastive loss of the features narrowed to each of `widths`."""
    pairs = [(narrowed(image_features, width), narrowed(text_features, width)) for width in widths]
    return torch.stack([contrastive_loss(*features, logit_scale) for features in pairs]).mean()

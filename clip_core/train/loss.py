"""The losses over the global batch, some rows at a time: no rank ever holds all (batch, batch) logits.

Each rank has its own rows of pictures and texts. It meets its pictures with the texts of all ranks, so that every
logit is computed on one rank alone, and again in the backward pass, which costs a third more than keeping them.
Sums over the ranks complete what a rank can not know: the log-sum-exp of a text's logits, the gradient of its features.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import logsigmoid, normalize

from clip_core.train.distributed import gathered, log_summed, num_ranks, rank, scattered, summed

LOGITS_AT_ONCE = 2**21  # 8 MiB


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, kinds: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE (CLIP): row i of both (batch, embed_dim) belongs together.

    `kinds` numbers every row of the global batch: another row of the same kind is no negative, it is left out.
    """
    return _Contrastive.apply(image_features, text_features, logit_scale, kinds)


def sigmoid_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor, kinds: Tensor | None = None
) -> Tensor:
    """Each pair alone, yes or no (SigLIP, Zhai et al. 2023, algorithm 1); `kinds` as above."""
    return _Sigmoid.apply(image_features, text_features, logit_scale, logit_bias, kinds)


def narrowed(features: Tensor, width: int) -> Tensor:
    """The first `width` numbers of each of `features`, L2-normalised again."""
    return features if width == features.shape[1] else normalize(features[:, :width], dim=-1)


def nested_loss(
    name: str,
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    widths: Sequence[int],
    kinds: Tensor | None = None,
) -> Tensor:
    """The mean loss `name` of the features narrowed to each of `widths` (Matryoshka, Kusupati et al. 2022).

    It is that of the global batch, the same on all ranks. Its gradient is `num_ranks` times a rank's own share, since
    gradients are averaged over the ranks.
    """
    losses = []
    for width in widths:
        features = narrowed(image_features, width), narrowed(text_features, width)
        if name == "sigmoid":
            assert logit_bias is not None
            losses.append(sigmoid_loss(*features, logit_scale, logit_bias, kinds))
        else:
            losses.append(contrastive_loss(*features, logit_scale, kinds))
    return torch.stack(losses).mean()


class _Contrastive(Function):
    """Softmax over the texts for each picture, and over the pictures for each text."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, logit_scale: Tensor, kinds: Tensor | None) -> Tensor:
        all_texts, scale, first = gathered(texts), logit_scale.exp(), rank() * len(images)
        by_image = torch.empty_like(images[:, 0])  # log-sum-exp of each picture's logits
        by_text = torch.full_like(all_texts[:, 0], -torch.inf)
        for rows in blocks(len(images), len(all_texts)):
            logits = _without_kin((scale * images[rows]) @ all_texts.T, first + rows.start, kinds)
            by_image[rows] = logits.logsumexp(1)
            by_text = torch.logaddexp(by_text, logits.logsumexp(0))
        by_text = log_summed(by_text)
        ctx.save_for_backward(images, all_texts, logit_scale, by_image, by_text, kinds)
        right = scale * (images * texts).sum(1)
        return summed((by_image + by_text[first : first + len(images)] - 2 * right).sum()) / (2 * len(all_texts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        images, all_texts, logit_scale, by_image, by_text, kinds = ctx.saved_tensors
        scale, first = logit_scale.exp(), rank() * len(images)
        factor = gradients[0] * num_ranks() / (2 * len(all_texts))
        to_images, to_texts = torch.empty_like(images), torch.zeros_like(all_texts)
        for rows in blocks(len(images), len(all_texts)):
            logits = _without_kin((scale * images[rows]) @ all_texts.T, first + rows.start, kinds)
            wrong = (logits - by_image[rows, None]).exp_() + logits.sub_(by_text).exp_()
            wrong.diagonal(first + rows.start).sub_(2)
            wrong *= scale * factor
            to_images[rows] = wrong @ all_texts
            to_texts.addmm_(wrong.T, images[rows])
        return to_images, scattered(to_texts), (to_images * images).sum(), None


class _Sigmoid(Function):
    """Yes or no for each picture with each text; the sum is divided by the number of pairs that belong together."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor, kinds: Tensor | None
    ) -> Tensor:
        all_texts, scale, first = gathered(texts), logit_scale.exp(), rank() * len(images)
        total = torch.zeros_like(logit_scale)
        for rows in blocks(len(images), len(all_texts)):
            logits = (scale * images[rows]) @ all_texts.T + logit_bias
            logits.diagonal(first + rows.start).neg_()
            total -= logsigmoid(-_without_kin(logits, first + rows.start, kinds)).sum()
        ctx.save_for_backward(images, all_texts, logit_scale, logit_bias, kinds)
        return summed(total) / len(all_texts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        images, all_texts, logit_scale, logit_bias, kinds = ctx.saved_tensors
        scale, first = logit_scale.exp(), rank() * len(images)
        factor = gradients[0] * num_ranks() / len(all_texts)
        to_images, to_texts, to_bias = torch.empty_like(images), torch.zeros_like(all_texts), torch.zeros_like(scale)
        for rows in blocks(len(images), len(all_texts)):
            logits = (scale * images[rows]) @ all_texts.T + logit_bias
            wrong = _without_kin(logits, first + rows.start, kinds).sigmoid_()
            wrong.diagonal(first + rows.start).sub_(1)
            wrong *= factor
            to_bias += wrong.sum()
            wrong *= scale
            to_images[rows] = wrong @ all_texts
            to_texts.addmm_(wrong.T, images[rows])
        return to_images, scattered(to_texts), (to_images * images).sum(), to_bias, None


def blocks(num_rows: int, batch: int) -> Iterator[slice]:
    """A rank's rows, as many at a time as LOGITS_AT_ONCE allows."""
    at_once = max(1, LOGITS_AT_ONCE // batch)
    return (slice(start, min(start + at_once, num_rows)) for start in range(0, num_rows, at_once))


def _without_kin(logits: Tensor, first: int, kinds: Tensor | None) -> Tensor:
    """`logits` of the pictures from the global batch's row `first` on, -inf where another row of their kind stands."""
    if kinds is None:
        return logits
    is_kin = kinds[first : first + len(logits), None] == kinds
    is_kin.diagonal(first).fill_(False)
    return logits.masked_fill_(is_kin, -torch.inf)

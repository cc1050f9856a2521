"""What a student is told by a teacher's features of the same rows, which it may come near in two ways.

Each rank has its own rows. A loss is that of the global batch, the same on all ranks, and its gradient `num_ranks`
times a rank's own share, since gradients are averaged over the ranks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import cosine_similarity, kl_div
from torch.utils.checkpoint import checkpoint

from clip_core.train.distributed import gathered, num_ranks, scattered, summed
from clip_core.train.loss import blocks

Pair = tuple[Tensor, Tensor]  # features of pictures and of texts, (local batch, width) each


def cosine_loss(features: Tensor, teacher: Tensor) -> Tensor:
    """The mean of 1 - cosine of each row with the teacher's, (local batch, width) both."""
    return _of_all_ranks((1 - cosine_similarity(features, teacher)).mean())


def relation_loss(features: Pair, factor: Tensor, teacher: Pair, teacher_factor: Tensor) -> Tensor:
    """KL divergence of softmaxes over the global batch, the student's from the teacher's, the mean of both ways.

    As in the contrastive loss: of each picture's `factor` times similarities to all texts, of each text's to all
    pictures. Rows are compared some at a time, and again in the backward pass: no rank holds all of them.
    """
    total = torch.zeros_like(factor)
    for own, others in ((0, 1), (1, 0)):
        rows, columns = factor * features[own], _Gathered.apply(features[others])
        teacher_rows, teacher_columns = teacher_factor * teacher[own], gathered(teacher[others])
        for some in blocks(len(rows), len(columns)):
            compared = rows[some], columns, teacher_rows[some], teacher_columns
            total = total + checkpoint(_divergence, *compared, use_reentrant=False, preserve_rng_state=False)
    return _of_all_ranks(total / (2 * len(features[0])))


def _divergence(rows: Tensor, columns: Tensor, teacher_rows: Tensor, teacher_columns: Tensor) -> Tensor:
    student, teacher = (rows @ columns.T).log_softmax(1), (teacher_rows @ teacher_columns.T).log_softmax(1)
    return kl_div(student, teacher, reduction="sum", log_target=True)


def _of_all_ranks(mean: Tensor) -> Tensor:
    """The mean over the ranks, with the gradient of this one's."""
    own = mean.detach()
    return mean + (summed(own.clone()) / num_ranks() - own)


class _Gathered(Function):
    """`gathered` with a gradient: what all ranks have to say of a row comes back to its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gathered(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return scattered(gradients[0].contiguous())

"""One step's loss and gradient: the towers' features, in the precision and in the portions that the params name."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from clip_core.config.training import Training
from clip_core.data.batches import Batch
from clip_core.model.clip import CLIP
from clip_core.model.precision import in_precision, pick_device, pick_precision
from clip_core.train.activations import keeping_statistics
from clip_core.train.distributed import average_others
from clip_core.train.grad_cache import Side, cached_backward
from clip_core.train.loss import nested_loss

AnyTraining = TypeVar("AnyTraining", bound=Training)
Encode = Callable[[Tensor], Tensor]  # what a batch holds of pictures (or texts) -> features
Lesson = Callable[[Tensor, Tensor], Tensor]  # features of a batch's pictures and texts -> a loss


def with_precision_resolved(params: AnyTraining) -> AnyTraining:
    """`params` with what this machine is good at in place of `precision: auto`, so that a resumed run stays with it."""
    return params.model_copy(update={"precision": pick_precision(params.precision, pick_device("auto"))})


def compute_as(params: Training) -> None:
    """Has torch compute as `params` say, from now on: with the same bits in every run, fp32 in full or as TF32."""
    torch.use_deterministic_algorithms(params.torch.deterministic)
    # it fills what will be written: 4 % of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # ty: ignore[missing-attribute]
    # not `fp32_precision`: torch.compile and the exporter read these, and refuse a mix of the two
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = params.torch.tf32


def backward(
    params: Training, model: CLIP, encode_images: Encode, batch: Batch, seed: int, lesson: Lesson | None = None
) -> Tensor:
    """Puts the gradient of the global batch's loss into the parameters and returns the loss, without waiting for it.

    With the same `seed` it drops the same units. `lesson` is what a teacher adds to the loss.
    """
    widths = (model.architecture.embed_dim, *model.architecture.matryoshka)
    image_side = (*model.image_tower.parameters(), *model.image_projection.parameters())
    learns = any(parameter.requires_grad for parameter in image_side)
    precise = partial(in_precision, precision=params.precision, device=model.logit_scale.device)
    images = Side(precise(encode_images), batch.images, learns)
    texts = Side(precise(lambda ids: encode_texts(model, ids)), batch.token_ids, True)
    kinds = None if batch.kinds is None else batch.kinds.to(model.logit_scale.device)

    def loss_of(image_features: Tensor, text_features: Tensor) -> Tensor:
        learned = model.logit_scale, model.logit_bias
        loss = nested_loss(params.loss.name, image_features, text_features, *learned, widths, kinds)
        return loss if lesson is None else loss + lesson(image_features, text_features)

    if params.micro_batch is not None:
        loss = cached_backward((images, texts), loss_of, model, params.micro_batch, seed)
        average_others(model)
        return loss
    torch.manual_seed(seed)
    loss = loss_of(images.encode(images.rows), texts.encode(texts.rows))
    with keeping_statistics(model):
        loss.backward()
    average_others(model)
    return loss.detach()


def encode_texts(model: CLIP, token_ids: Tensor) -> Tensor:
    """The model's text features, short texts apart from long ones: less padding, which is 40 % of the time."""
    lengths = (token_ids != 0).sum(1)
    order = lengths.argsort(stable=True)
    halves = [model.encode_texts(token_ids[rows, : int(lengths[rows].max())]) for rows in order.chunk(2)]
    return torch.cat(halves)[order.argsort()]

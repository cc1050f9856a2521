"""What a training needs of a device's memory, estimated from what its model costs (`clip_core.model.costs`).

Attention counts as written out, so a real step keeps less; bf16 halves what is kept and adds a copy of the weights.
"""

from functools import cache
from typing import Any, NamedTuple

from clip_core.config.training import Training
from clip_core.model.costs import ADAMW_BYTES, CONTEXT_LENGTH, architecture_of, costs_of, on_meta
from clip_core.train.loss import LOGITS_AT_ONCE

LOSS_TENSORS = 6  # logits, their softmax and its gradient, both ways


class Tower(NamedTuple):
    parameters: int  # with its projection
    kept: int  # bytes of a sample's activations
    between: int  # bytes of them between the blocks, which is what activation checkpoints keep
    layers: int

    def in_one_layer(self) -> float:
        return self.kept / self.layers


@cache
def towers_of(model: str) -> tuple[Tower, Tower]:
    """The image and the text tower of a model of the registry."""
    costs, made = costs_of(model), on_meta(architecture_of(model))
    image: Any = made.image_tower
    if hasattr(image, "blocks"):
        layers = len(image.blocks)
        between = 4 * layers * (image.patch_embed.num_patches + 1) * image.embed_dim
    else:
        layers, between = 1, 0  # a ResNet: as if nothing could be computed again
    bert = made.text_tower.encoder.config
    sizes = costs.parameters
    return (
        Tower(sizes["image_tower"] + sizes["image_projection"], costs.image_activations, between, layers),
        Tower(
            sizes["text_tower"] + sizes["text_projection"],
            costs.text_activations,
            4 * bert.num_hidden_layers * CONTEXT_LENGTH * bert.hidden_size,
            bert.num_hidden_layers,
        ),
    )


def gib_needed(training: Training, model: str, is_image_tower_frozen: bool) -> float:
    """GiB for weights, gradients, AdamW, the activations of one forward and the loss; 0 where nothing trains."""
    if training.schedule.num_steps == 0:
        return 0.0
    image, text = towers_of(model)
    is_bf16 = training.precision != "fp32"

    def kept(tower: Tower) -> float:
        checkpointed = tower.between + tower.in_one_layer()
        return (checkpointed if training.checkpoint_activations else tower.kept) / (2 if is_bf16 else 1)

    per_row = [image.in_one_layer() / (2 if is_bf16 else 1) if is_image_tower_frozen else kept(image), kept(text)]
    trained = text.parameters + (0 if is_image_tower_frozen else image.parameters)
    weights = ADAMW_BYTES * trained + 4 * is_image_tower_frozen * image.parameters
    weights += 2 * is_bf16 * (image.parameters + text.parameters)
    if training.micro_batch is None:
        activations = training.global_batch * sum(per_row)
    else:  # one side after the other
        activations = training.micro_batch * max(per_row)
    loss = 4 * LOSS_TENSORS * max(LOGITS_AT_ONCE, training.global_batch)
    return (weights + activations + loss) / 2**30

"""What each model of the registry is made of and what it costs, counted on torch's meta device: nothing is allocated.

How it is counted, for one picture or one text of full length, in float32:
FLOPs are those of convolutions and matrix products in one forward pass, a multiply-add being two. Activations are
the tensors that autograd keeps for the backward pass, parameters not among them, with attention written out: fused
attention keeps less. AdamW keeps 16 bytes for each parameter: the weight, its gradient and its two moments.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from clip_core.model.clip import CLIP
from clip_core.model.contract import Architecture, TextArchitecture
from clip_core.model.registry import CHINESE_CLIP, MODELS, SIGLIP2

PARTS = ("image_tower", "image_projection", "text_tower", "text_projection", "logit_scale", "logit_bias")
ADAMW_BYTES = 4 * 4  # for each parameter
IMAGE_SIZES = {"tiny": 48, "rn50": 224}  # the others' towers say it


@dataclass(frozen=True)
class Costs:
    """The figures of one model."""

    name: str
    parameters: dict[str, int]  # by part
    image_size: int
    image_flops: int  # per picture
    text_flops: int  # per text of full length
    image_activations: int  # bytes per picture
    text_activations: int

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    @property
    def adamw_bytes(self) -> int:
        return ADAMW_BYTES * self.total


def costs_of(name: str) -> Costs:
    """The costs of the model that the registry calls `name`, with the vocabulary of its released weights."""
    model = on_meta(architecture_of(name))
    size = model.architecture.image_size
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8, device="meta")
    token_ids = torch.ones(1, model.architecture.context_length, dtype=torch.int64, device="meta")
    image_flops, image_activations = forward_costs(model, model.encode_images, pixels)
    text_flops, text_activations = forward_costs(model, model.encode_texts, token_ids)
    return Costs(name, parameters_by_part(model), size, image_flops, text_flops, image_activations, text_activations)


def architecture_of(name: str) -> Architecture:
    """The model as released; the tiny one, which builds its own vocabulary, with that of Chinese-CLIP."""
    shape = MODELS[name]
    family = shape.family
    options = {"max_position_embeddings": family.context_length, **shape.text_tower.options}
    return Architecture(
        image_tower=shape.image_tower,
        text_tower=TextArchitecture(name=shape.text_tower.name, options=options, vocab_size=family.vocabulary),
        embed_dim=shape.embed_dim,
        image_size=IMAGE_SIZES.get(name) or int(shape.image_tower.name[-3:]),
        context_length=family.context_length,
        preprocessing=family.preprocessing,
        logit_bias=family.logit_bias,
    )


def on_meta(architecture: Architecture) -> CLIP:
    """A model of which everything but the numbers is there."""
    with torch.device("meta"):
        return CLIP(architecture)


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[name.partition(".")[0]] += parameter.numel()
    return counts


def forward_costs(model: nn.Module, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[int, int]:
    """The FLOPs of one training forward, and the bytes that it keeps for the backward pass."""
    weights = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # alive, so that no other storage gets its number
        return tensor

    model.train()
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        encode(inputs)
    return counter.get_total_flops(), sum(storage.nbytes() for storage in kept.values())


COLUMNS: dict[str, Callable[[Costs], str]] = {
    "model": lambda costs: costs.name,
    "parameters": lambda costs: f"{costs.total:,}",
    "image tower": lambda costs: f"{costs.parameters['image_tower']:,}",
    "image proj.": lambda costs: f"{costs.parameters['image_projection']:,}",
    "text tower": lambda costs: f"{costs.parameters['text_tower']:,}",
    "text proj.": lambda costs: f"{costs.parameters['text_projection']:,}",
    "scale,bias": lambda costs: f"{costs.parameters['logit_scale'] + costs.parameters['logit_bias']:,}",
    "pixels": lambda costs: f"{costs.image_size}",
    "image GFLOP": lambda costs: f"{costs.image_flops / 1e9:.2f}",
    "text GFLOP": lambda costs: f"{costs.text_flops / 1e9:.2f}",
    "image act. MiB": lambda costs: f"{costs.image_activations / 2**20:.1f}",
    "text act. MiB": lambda costs: f"{costs.text_activations / 2**20:.1f}",
    "AdamW MiB": lambda costs: f"{costs.adamw_bytes / 2**20:,.0f}",
}


def table(models: list[Costs]) -> list[str]:
    """A line for the columns' names and a line for each model."""
    rows = [list(COLUMNS), *([show(costs) for show in COLUMNS.values()] for costs in models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [row[0].ljust(widths[0]) + line[widths[0] :] for row, line in zip(rows, aligned, strict=True)]


def main() -> None:
    """Prints the table and how to read it."""
    argparse.ArgumentParser(prog="python -m clip_core.model.costs", description=main.__doc__).parse_args()
    print("\n".join(table([costs_of(name) for name in MODELS])))
    print(
        "\nPer sample, float32: GFLOP of one forward (a multiply-add is two; texts of full length:"
        f" {CHINESE_CLIP.context_length} tokens, SigLIP 2 {SIGLIP2.context_length});"
        "\nact.: what training keeps for the backward pass, attention written out (fused attention keeps less);"
        "\nAdamW: weights, gradients and two moments, 16 bytes for each parameter, once and not per sample."
        f"\nVocabulary: {CHINESE_CLIP.vocabulary:,} tokens, SigLIP 2 {SIGLIP2.vocabulary:,}."
        " For tiny this is assumed: `init` builds its own from the captions."
    )


if __name__ == "__main__":
    main()

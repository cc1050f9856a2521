"""Recognises a model's architecture from the shapes of its tensors, so that nothing has to be typed."""

import math
import re
from typing import Any, NamedTuple

from torch import Tensor

from clip_core.config.model import ImageTower, Options, TextTower
from clip_core.errors import UserError
from clip_core.model.contract import Architecture
from clip_core.model.pretrained.names import TRANSPOSED, Table, their_names
from clip_core.model.registry import MODELS, Shape

HEAD_WIDTH = 64  # of every known CLIP up to WIDE; of the wider ones each has its own
WIDE = 1024
HEAD_WIDTHS = {1280: 80}  # H/14
EPS_OF_VIT, EPS_OF_BERT = 1e-5, 1e-12
ACTIVATIONS = ("quick_gelu", "gelu")  # of image towers; the first where nothing says
VITS = {  # width, layers, heads, patch size
    (768, 12, 12, 32): "vit_base_patch32_clip_quickgelu_224",
    (768, 12, 12, 16): "vit_base_patch16_clip_quickgelu_224",
    (1024, 24, 16, 14): "vit_large_patch14_clip_quickgelu_224",
    (1280, 32, 16, 14): "vit_huge_patch14_clip_quickgelu_224",
}
ANY_VIT = "vit_base_patch16_clip_quickgelu_224"  # with options, any other CLIP ViT
RESNETS: dict[tuple[tuple[int, ...], int], str] = {  # bottlenecks of the four stages, width
    ((3, 4, 6, 3), 64): "resnet50_clip",
    ((3, 4, 23, 3), 64): "resnet101_clip",
    ((4, 6, 10, 6), 80): "resnet50x4_clip",
    ((6, 8, 18, 8), 96): "resnet50x16_clip",
    ((3, 15, 36, 10), 128): "resnet50x64_clip",
}
STRIDE_OF_RESNETS = 32


class Recognised(NamedTuple):
    """An image tower and the pictures it is for."""

    tower: ImageTower
    image_size: int
    stride: int  # the pixels of a picture's side that one position stands for


def recognise_vit(
    tensors: dict[str, Tensor], table: Table, config: dict[str, Any], heads_matter: bool = True
) -> Recognised:
    """The CLIP ViT of these tensors; `config` (a vision_config of transformers) says what shapes can not.

    Raises UserError where the number of heads stays unknown, unless it does not matter.
    """
    patches, positions, hidden = _keystones(
        tensors,
        table,
        {
            "image_tower.patch_embed.proj.weight": 4,
            "image_tower.pos_embed": 2,
            "image_tower.blocks.0.mlp.fc1.weight": 2,
        },
    )
    width, patch_size = patches[0], patches[-1]
    layers = num_numbered(tensors, their_names("image_tower.blocks.12345.norm1.weight", table)[0])
    heads = _heads("image tower", width, config, heads_matter)
    image_size = math.isqrt(positions[-2] - 1) * patch_size
    name = VITS.get((width, layers, heads, patch_size)) if hidden[0] == 4 * width else None
    options: Options = {}
    if name is None:
        name = ANY_VIT
        options = {"patch_size": patch_size, "embed_dim": width, "depth": layers, "num_heads": heads}
        if hidden[0] != 4 * width:
            options["mlp_ratio"] = hidden[0] / width
    if (activation := config.get("hidden_act", ACTIVATIONS[0])) not in ACTIVATIONS:
        raise UserError(f"hidden_act of its image tower is {activation!r}; only {' and '.join(ACTIVATIONS)} are known")
    if (eps := config.get("layer_norm_eps", EPS_OF_VIT)) != EPS_OF_VIT:
        raise UserError(f"layer_norm_eps of its image tower is {eps}; only {EPS_OF_VIT} is known")
    if activation == "gelu":
        name = name.replace("_quickgelu", "")
    return Recognised(for_size(ImageTower(name=name, options=options), image_size), image_size, patch_size)


def for_size(tower: ImageTower, image_size: int) -> ImageTower:
    """The tower under the name that timm has for it at this size: L/14 has one of its own for 336, SigLIP many."""
    if siglip := re.fullmatch(r"(vit_\w+_siglip)_\d{3}", tower.name):
        name = f"{siglip[1]}_{image_size}"
        known = any(model.image_tower.name == name for model in MODELS.values())
        return tower.model_copy(update={"name": name}) if known else tower
    large = re.fullmatch(r"(vit_large_patch14_clip(?:_quickgelu)?)_(224|336)", tower.name)
    return tower.model_copy(update={"name": f"{large[1]}_{336 if image_size == 336 else 224}"}) if large else tower


def recognise_resnet(tensors: dict[str, Tensor], table: Table) -> Recognised:
    """The CLIP ResNet of these tensors."""
    stem, positions = _keystones(
        tensors, table, {"image_tower.stem.conv3.conv.weight": 4, "image_tower.head.pos_embed": 2}
    )
    names = (their_names(f"image_tower.stages.{stage}.12345.conv1_1x1.conv.weight", table)[0] for stage in range(4))
    blocks = tuple(num_numbered(tensors, name) for name in names)
    if (blocks, stem[0]) not in RESNETS:
        known = ", ".join(RESNETS.values())
        raise UserError(f"a CLIP ResNet of {blocks} bottlenecks, {stem[0]} wide, is not known (known are {known})")
    tower = ImageTower(name=RESNETS[blocks, stem[0]], options={})
    return Recognised(tower, math.isqrt(positions[0] - 1) * STRIDE_OF_RESNETS, STRIDE_OF_RESNETS)


def recognise_bert(tensors: dict[str, Tensor], prefix: str, config: dict[str, Any]) -> tuple[TextTower, int]:
    """The BERT whose tensors begin with `prefix`, and the size of its vocabulary."""
    words, positions, hidden = keystones(
        tensors,
        {
            f"{prefix}embeddings.word_embeddings.weight": 2,
            f"{prefix}embeddings.position_embeddings.weight": 2,
            f"{prefix}encoder.layer.0.intermediate.dense.weight": 2,
        },
    )
    options: Options = {
        "hidden_size": words[1],
        "num_hidden_layers": num_numbered(tensors, f"{prefix}encoder.layer.12345.output.dense.weight"),
        "num_attention_heads": _heads("text tower", words[1], config),
        "intermediate_size": hidden[0],
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": positions[0],
    }
    for name, known in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if (value := config.get(name, known)) != known:
            raise UserError(f"{name} of its text tower is {value!r}; only BERT's own {known!r} is supported")
    if (eps := config.get("layer_norm_eps", EPS_OF_BERT)) != EPS_OF_BERT:
        options["layer_norm_eps"] = eps
    return TextTower(name="bert", options=options), words[0]


def _heads(tower: str, width: int, config: dict[str, Any], matter: bool = True) -> int:
    """How many attention heads a tower has, which its tensors do not show."""
    if (heads := config.get("num_attention_heads")) is None:
        head_width = config.get("head_width", HEAD_WIDTHS.get(width, HEAD_WIDTH))
        if not isinstance(head_width, int) or head_width < 1:
            raise UserError(f"head_width of its {tower} is {head_width!r}, not a width")
        heads = max(width // head_width, 1)
        unknown = "head_width" not in config and width not in HEAD_WIDTHS and (width > WIDE or width % HEAD_WIDTH)
        if unknown and matter:
            raise UserError(
                f"its {tower} is {width} wide, and how many attention heads that makes can not be seen in tensors; "
                "give the folder with its config (config.json or open_clip_config.json), not the file alone"
            )
    if not isinstance(heads, int) or heads < 1 or (matter and width % heads):
        raise UserError(f"its {tower} is {width} wide, which can not be shared by {heads!r} attention heads")
    return heads


def embed_dim_of(tensors: dict[str, Tensor], table: Table) -> int:
    """The width of the space that the image tower's projection leads to."""
    name = their_names("image_projection.weight", table)[0]
    (shape,) = keystones(tensors, {name: 2})
    return shape[1] if name in TRANSPOSED else shape[0]


def name_of(architecture: Architecture) -> str:
    """The name in the registry of a model of this shape and for pictures of this size; "custom" for others."""
    text_tower = TextTower(name=architecture.text_tower.name, options=architecture.text_tower.options)
    image_tower = for_size(architecture.image_tower, architecture.image_size)  # training at 336 pixels keeps the name
    shape = Shape(image_tower, text_tower, architecture.embed_dim)
    return next((name for name, known in MODELS.items() if known == shape), "custom")


def num_numbered(tensors: dict[str, Tensor], name: str) -> int:
    """One more than the highest number that stands in place of 12345 in the names of `tensors`."""
    before, after = name.split("12345")
    pattern = re.compile(rf"{re.escape(before)}(\d+)\.")
    assert after.startswith(".")
    return max((int(match[1]) + 1 for match in map(pattern.match, tensors) if match), default=0)


def keystones(tensors: dict[str, Tensor], dims: dict[str, int]) -> list[tuple[int, ...]]:
    """The shapes of the tensors that the architecture is read from; raises UserError when one is not there."""
    wrong = [f"  missing: {name}" for name in dims if name not in tensors]
    wrong += [
        f"  other shape: {name} is {tuple(tensors[name].shape)}, wanted are {dim} dimensions"
        for name, dim in dims.items()
        if name in tensors and tensors[name].dim() < dim
    ]
    if wrong:
        raise UserError("\n".join(["the architecture can not be recognised without these:", *wrong]))
    return [tuple(tensors[name].shape) for name in dims]


def _keystones(tensors: dict[str, Tensor], table: Table, dims: dict[str, int]) -> list[tuple[int, ...]]:
    return keystones(tensors, {their_names(ours, table)[0]: dim for ours, dim in dims.items()})

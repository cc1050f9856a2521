"""What each tensor of ours is called in other people's checkpoints: one table a format, used both ways."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from clip_core.errors import UserError
from clip_core.model.weights import differing

Table = dict[str, str]  # pattern of our name -> theirs; {q,k,v}: three tensors, stacked in ours; {+3}: that and one

_BLOCK = r"image_tower\.blocks\.(\d+)\."
_BOTTLENECK = r"image_tower\.stages\.(\d+)\.(\d+)\."

# OpenAI's names, which open_clip and, for its image tower, Chinese-CLIP (OFA-Sys) kept.
OPENAI: Table = {
    r"logit_scale": "logit_scale",
    r"image_projection\.weight": "visual.proj",
    r"image_tower\.cls_token": "visual.class_embedding",
    r"image_tower\.pos_embed": "visual.positional_embedding",
    r"image_tower\.patch_embed\.proj\.weight": "visual.conv1.weight",
    r"image_tower\.norm_pre\.(\w+)": r"visual.ln_pre.\1",
    r"image_tower\.norm\.(\w+)": r"visual.ln_post.\1",
    _BLOCK + r"norm(\d)\.(\w+)": r"visual.transformer.resblocks.\1.ln_\2.\3",
    _BLOCK + r"attn\.qkv\.(\w+)": r"visual.transformer.resblocks.\1.attn.in_proj_\2",
    _BLOCK + r"attn\.proj\.(\w+)": r"visual.transformer.resblocks.\1.attn.out_proj.\2",
    _BLOCK + r"mlp\.fc1\.(\w+)": r"visual.transformer.resblocks.\1.mlp.c_fc.\2",
    _BLOCK + r"mlp\.fc2\.(\w+)": r"visual.transformer.resblocks.\1.mlp.c_proj.\2",
}
OPENAI_RESNET: Table = {
    r"logit_scale": "logit_scale",
    r"image_projection\.(\w+)": r"visual.attnpool.c_proj.\1",
    r"image_tower\.head\.pos_embed": "visual.attnpool.positional_embedding",
    r"image_tower\.head\.([qkv])\.(\w+)": r"visual.attnpool.\1_proj.\2",
    r"image_tower\.stem\.conv(\d)\.conv\.(\w+)": r"visual.conv\1.\2",
    r"image_tower\.stem\.conv(\d)\.bn\.(\w+)": r"visual.bn\1.\2",
    _BOTTLENECK + r"conv(\d)_\w+\.conv\.(\w+)": r"visual.layer{+\1}.\2.conv\3.\4",
    _BOTTLENECK + r"conv(\d)_\w+\.bn\.(\w+)": r"visual.layer{+\1}.\2.bn\3.\4",
    _BOTTLENECK + r"shortcut\.conv\.conv\.(\w+)": r"visual.layer{+\1}.\2.downsample.0.\3",
    _BOTTLENECK + r"shortcut\.conv\.bn\.(\w+)": r"visual.layer{+\1}.\2.downsample.1.\3",
}
_TRANSFORMERS_TOWER: Table = {
    r"logit_scale": "logit_scale",
    r"image_tower\.cls_token": "vision_model.embeddings.class_embedding",
    r"image_tower\.pos_embed": "vision_model.embeddings.position_embedding.weight",
    r"image_tower\.patch_embed\.proj\.weight": "vision_model.embeddings.patch_embedding.weight",
    r"image_tower\.norm_pre\.(\w+)": r"vision_model.pre_layrnorm.\1",  # they spell it so
    r"image_tower\.norm\.(\w+)": r"vision_model.post_layernorm.\1",
    _BLOCK + r"norm(\d)\.(\w+)": r"vision_model.encoder.layers.\1.layer_norm\2.\3",
    _BLOCK + r"attn\.qkv\.(\w+)": r"vision_model.encoder.layers.\1.self_attn.{q,k,v}_proj.\2",
    _BLOCK + r"attn\.proj\.(\w+)": r"vision_model.encoder.layers.\1.self_attn.out_proj.\2",
    _BLOCK + r"mlp\.(fc\d)\.(\w+)": r"vision_model.encoder.layers.\1.mlp.\2.\3",
}
TRANSFORMERS_VIT: Table = {r"image_projection\.weight": "visual_projection.weight", **_TRANSFORMERS_TOWER}
TIMM: Table = {
    r"logit_scale": "logit_scale",
    r"image_tower\.(.+)": r"\1",
    r"image_projection\.(\w+)": r"head.\1",
}
TIMM_RESNET: Table = {**TIMM, r"image_projection\.(\w+)": r"head.proj.\1"}
OFA_TEXT: Table = {r"text_projection\.weight": "text_projection", r"text_tower\.encoder\.(.+)": r"bert.\1"}
TRANSFORMERS_TEXT: Table = {
    r"text_projection\.weight": "text_projection.weight",
    r"text_tower\.encoder\.(.+)": r"text_model.\1",
}

OFA: Table = {**OPENAI, **OFA_TEXT}
OFA_RESNET: Table = {**OPENAI_RESNET, **OFA_TEXT}
TRANSFORMERS: Table = {**TRANSFORMERS_VIT, **TRANSFORMERS_TEXT}

_POOL = r"image_tower\.attn_pool\."
SIGLIP: Table = {
    **_TRANSFORMERS_TOWER,
    r"logit_bias": "logit_bias",
    r"image_tower\.patch_embed\.proj\.bias": "vision_model.embeddings.patch_embedding.bias",
    _POOL + r"latent": "vision_model.head.probe",
    _POOL + r"q\.(\w+)": r"vision_model.head.attention.q_proj.\1",  # theirs as in siglip.py: `apart`
    _POOL + r"kv\.(\w+)": r"vision_model.head.attention.{k,v}_proj.\1",
    _POOL + r"proj\.(\w+)": r"vision_model.head.attention.out_proj.\1",
    _POOL + r"norm\.(\w+)": r"vision_model.head.layernorm.\1",
    _POOL + r"mlp\.(fc\d)\.(\w+)": r"vision_model.head.mlp.\1.\2",
    r"text_projection\.(\w+)": r"text_model.head.\1",
    r"text_tower\.encoder\.(.+)": r"text_model.\1",
}

TRANSPOSED = {"visual.proj", "text_projection"}
WITHOUT_BATCH = {  # (width,) and (positions, width), where ours have a first dimension of 1
    "visual.class_embedding",
    "visual.positional_embedding",
    "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.position_embedding.weight",
}


class Row(NamedTuple):
    ours: str
    theirs: tuple[str, ...]


def rows(ours: Iterable[str], table: Table) -> list[Row]:
    """The table's lines for the tensors of one model."""
    return [Row(name, their_names(name, table)) for name in ours]


def to_theirs(ours: dict[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes; views where that is possible."""
    return dict(chain.from_iterable(_split(row, ours[row.ours]) for row in rows(ours, table)))


def to_ours(theirs: dict[str, Tensor], wanted: dict[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Their tensors under our names, in our shapes and in fp32.

    Raises UserError that lists all that is missing, unexpected or of another shape than `wanted` (in our names).
    """
    expected = to_theirs({name: tensor.to("meta") for name, tensor in wanted.items()}, table)
    if differences := differing(_shapes(expected), _shapes(theirs)):
        raise UserError(differences)
    return {row.ours: _join(row, theirs, wanted[row.ours]) for row in rows(wanted, table)}


def their_names(ours: str, table: Table) -> tuple[str, ...]:
    """What the format calls a tensor of ours; several names where ours is theirs stacked."""
    for pattern, replacement in table.items():
        if match := re.fullmatch(pattern, ours):
            theirs = re.sub(r"\{\+(\d+)\}", lambda number: str(int(number[1]) + 1), match.expand(replacement))
            parts = re.search(r"\{(.+)\}", theirs)
            return tuple(theirs.replace(parts[0], part) for part in parts[1].split(",")) if parts else (theirs,)
    raise UserError(f"{ours}: this format has no name for it")


def _split(row: Row, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    for name, part in zip(row.theirs, tensor.chunk(len(row.theirs)) if tensor.dim() else [tensor], strict=True):
        if name in TRANSPOSED:
            yield name, part.t()
        else:
            yield name, part.squeeze() if name in WITHOUT_BATCH else part


def _join(row: Row, theirs: dict[str, Tensor], wanted: Tensor) -> Tensor:
    parts = [theirs[name].t() if name in TRANSPOSED else theirs[name] for name in row.theirs]
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    return tensor.to(wanted.dtype).reshape(wanted.shape)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}

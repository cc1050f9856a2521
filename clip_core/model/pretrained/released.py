"""Reads Chinese-CLIP weights: files of OFA-Sys, released or saved in training there, and folders of transformers."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from clip_core.errors import UserError
from clip_core.image import AS_RELEASED, Preprocessing
from clip_core.model.clip import CLIP
from clip_core.model.contract import Architecture, TextArchitecture
from clip_core.model.pretrained.checkpoint import Checkpoint, read_json
from clip_core.model.pretrained.names import OFA, OFA_RESNET, TRANSFORMERS, Table, to_ours
from clip_core.model.pretrained.positions import check_image_size, resize_all_positions
from clip_core.model.pretrained.recognise import (
    Recognised,
    embed_dim_of,
    for_size,
    name_of,
    recognise_bert,
    recognise_resnet,
    recognise_vit,
)
from clip_core.model.pretrained.released_vocabulary import find_vocabulary
from clip_core.model.registry import Shape
from clip_core.model.weights import without_weights
from clip_core.text import parse_tokenizer, tokenizer_of_vocabulary

CONTEXT_LENGTH = 52  # of the released weights' training; any other up to the number of positions works
LEAST_LENGTH = 3  # a text of one token
OWN = "clip_core"  # in the preprocessor_config.json of our own exports: the rest of the preprocessing
PROCESSOR = {  # what a preprocessor_config.json may say, and what is done here
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
}
RESAMPLE = {3: "squash-bicubic", 2: "squash-bilinear"}
UNUSED = re.compile(r"(bert|text_model)\.pooler\..+|.+\.(position_ids|token_type_ids)")
RARE = ("convert", "orientation", "grey16", "background")  # which transformers has no words for
FUSED = re.compile(r"(?P<layer>bert\..+\.attention)\.self\.(?P<part>Wqkv|out_proj)\.(?P<kind>weight|bias)")


@dataclass(frozen=True)
class Released:
    """Chinese-CLIP weights in our form."""

    model: CLIP
    tokenizer_json: str
    name: str  # in the registry; "custom" for others
    vocabulary: Path
    unused: list[str]  # tensors of the source that no feature depends on


def is_chinese_clip(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has a BERT beside an image tower."""
    return _any_begins(checkpoint.tensors, "bert.", "text_model.embeddings.word_embeddings.") and _any_begins(
        checkpoint.tensors, "visual.", "vision_model.", "visual_projection."
    )


def released_in(
    checkpoint: Checkpoint, vocab: Path | None, image_size: int | None, context_length: int | None
) -> Released:
    """The Chinese-CLIP weights in a checkpoint."""
    unused = [name for name in checkpoint.tensors if UNUSED.fullmatch(name)]
    theirs = without_flash_attention({name: t for name, t in checkpoint.tensors.items() if name not in set(unused)})
    try:
        table = _table(theirs)
        image, shape, vocab_size = _recognise(theirs, table, checkpoint.config)
        preprocessing, own_length = as_prepared(checkpoint.source, image.image_size, AS_RELEASED)
        context_length = context_length or own_length or CONTEXT_LENGTH
        architecture = _architecture(shape, image.image_size, vocab_size, context_length, preprocessing)
        model = without_weights(architecture)
        ours = to_ours(theirs, model.state_dict(), table)
        vocabulary, tokenizer_json = _tokenizer(checkpoint.source, vocab, vocab_size, context_length)
        if image_size not in (None, image.image_size):
            check_image_size(image_size, image.stride)
            tower = for_size(image.tower, image_size)
            architecture = architecture.model_copy(update={"image_size": image_size, "image_tower": tower})
            model = without_weights(architecture)
            ours = resize_all_positions(ours, model.state_dict())
    except ValueError as error:
        raise UserError(f"{checkpoint.source}: {error}") from None
    model.load_state_dict(ours, assign=True)
    return Released(model.eval(), tokenizer_json, name_of(architecture), vocabulary, unused)


def without_flash_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that they have without FlashAttention, in whose files some are fused."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = FUSED.fullmatch(name)
        if match is None:
            plain[name.replace(".attn.Wqkv.", ".attn.in_proj_")] = tensor
        elif match["part"] == "out_proj":
            plain[f"{match['layer']}.output.dense.{match['kind']}"] = tensor
        else:
            for part, chunk in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                plain[f"{match['layer']}.self.{part}.{match['kind']}"] = chunk
    return plain


def _table(tensors: dict[str, Tensor]) -> Table:
    if not _any_begins(tensors, "visual."):
        return TRANSFORMERS
    return OFA_RESNET if _any_begins(tensors, "visual.attnpool.", "visual.layer1.") else OFA


def _recognise(tensors: dict[str, Tensor], table: Table, config: dict[str, Any]) -> tuple[Recognised, Shape, int]:
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    image = recognise_resnet(tensors, table) if table is OFA_RESNET else recognise_vit(tensors, table, vision)
    prefix = "text_model." if table is TRANSFORMERS else "bert."
    text_tower, vocab_size = recognise_bert(tensors, prefix, text)
    return image, Shape(image.tower, text_tower, embed_dim_of(tensors, table)), vocab_size


def as_prepared(source: Path, image_size: int, usual: Preprocessing) -> tuple[Preprocessing, int | None]:
    """How pictures were prepared, as `usual` but for what the folder says itself; and our exports' context_length."""
    path = source / "preprocessor_config.json"
    if not path.exists():
        return usual, None
    config = read_json(path)
    square = {"height": image_size, "width": image_size}
    wrong = [f"{k} {config[k]!r}" for k, here in PROCESSOR.items() if k in config and not _same(config[k], here)]
    if (resample := config.get("resample", 3)) not in RESAMPLE:
        wrong.append(f"resample {resample!r}")
    if config.get("size", square) != square:
        wrong.append(f"size {config['size']!r}")
    if config.get("do_center_crop") and config.get("crop_size", square) not in (image_size, square):
        wrong.append(f"do_center_crop to {config['crop_size']!r}")
    if wrong:
        raise UserError(
            f"{path.name}: pictures can not be prepared so here: {', '.join(wrong)}. Here they are squashed to "
            f"{image_size} x {image_size} pixels, for which the positions are, without cropping, and normalised. Where "
            "the weights were trained so in truth, correct the file, or remove it"
        )
    own = config.get(OWN)
    given = {key: config[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in config}
    rest = own if isinstance(own, dict) else {k: getattr(usual, k) for k in RARE}
    rest = {**rest, "resize": RESAMPLE[resample]}
    try:
        preprocessing = TypeAdapter(Preprocessing).validate_json(json.dumps(rest | given))
    except ValidationError as error:
        raise UserError(f"{path.name}: {error}") from None
    tokens = source / "tokenizer_config.json"
    length = read_json(tokens).get("model_max_length") if own and tokens.exists() else None
    return preprocessing, length if isinstance(length, int) else None


def _same(found: object, wanted: float) -> bool:
    return isinstance(found, int | float) and math.isclose(found, wanted, rel_tol=1e-6)


def _architecture(
    shape: Shape, image_size: int, vocab_size: int, context_length: int, preprocessing: Preprocessing
) -> Architecture:
    limit = shape.text_tower.options["max_position_embeddings"]
    if context_length < LEAST_LENGTH:
        raise UserError(f"context_length {context_length}: [CLS], a token and [SEP] need {LEAST_LENGTH}")
    if isinstance(limit, int) and context_length > limit:
        raise UserError(f"context_length {context_length} is more than the text tower's {limit} positions")
    return Architecture(
        image_tower=shape.image_tower,
        text_tower=TextArchitecture(**shape.text_tower.model_dump(), vocab_size=vocab_size),
        embed_dim=shape.embed_dim,
        image_size=image_size,
        context_length=context_length,
        preprocessing=preprocessing,
    )


def _tokenizer(source: Path, given: Path | None, vocab_size: int, context_length: int) -> tuple[Path, str]:
    vocabulary = find_vocabulary(source, given, vocab_size)
    tokenizer_json = tokenizer_of_vocabulary(vocabulary)
    found = parse_tokenizer(tokenizer_json, context_length).vocab_size
    if found != vocab_size:
        raise UserError(f"has embeddings for {vocab_size} tokens, but {vocabulary} has {found} different tokens")
    return vocabulary, tokenizer_json


def _any_begins(names: Iterable[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)

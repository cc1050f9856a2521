"""Reads Chinese-CLIP weights: files of OFA-Sys, released or saved in training there, and folders of transformers."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clip_core.image import AS_RELEASED
from clip_core.model.clip import CLIP
from clip_core.model.contract import Architecture, TextArchitecture
from clip_core.model.pretrained.checkpoint import Checkpoint, read_checkpoint
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
UNUSED = re.compile(r"(bert|text_model)\.pooler\..+|.+\.(position_ids|token_type_ids)")
FUSED = re.compile(r"(?P<layer>bert\..+\.attention)\.self\.(?P<part>Wqkv|out_proj)\.(?P<kind>weight|bias)")


@dataclass(frozen=True)
class Released:
    """Chinese-CLIP weights in our form."""

    model: CLIP
    tokenizer_json: str
    name: str  # in the registry; "custom" for others
    vocabulary: Path
    unused: list[str]  # tensors of the source that no feature depends on


def read_released(
    source: Path, vocab: Path | None = None, image_size: int | None = None, context_length: int = CONTEXT_LENGTH
) -> tuple[CLIP, str]:
    """The model (fp32, eval mode) in an OFA-Sys file or a transformers folder, and its tokenizer.json.

    With `image_size` the positions are resized to pictures of that size. Raises ValueError that lists all that is
    missing, unexpected or of another shape.
    """
    released = released_in(read_checkpoint(source), vocab, image_size, context_length)
    return released.model, released.tokenizer_json


def is_chinese_clip(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has a BERT beside an image tower."""
    return _any_begins(checkpoint.tensors, "bert.", "text_model.embeddings.word_embeddings.") and _any_begins(
        checkpoint.tensors, "visual.", "vision_model.", "visual_projection."
    )


def released_in(checkpoint: Checkpoint, vocab: Path | None, image_size: int | None, context_length: int) -> Released:
    """The Chinese-CLIP weights in a checkpoint."""
    unused = [name for name in checkpoint.tensors if UNUSED.fullmatch(name)]
    theirs = without_flash_attention({name: t for name, t in checkpoint.tensors.items() if name not in set(unused)})
    try:
        table = _table(theirs)
        image, shape, vocab_size = _recognise(theirs, table, checkpoint.config)
        architecture = _architecture(shape, image.image_size, vocab_size, context_length)
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
        raise ValueError(f"{checkpoint.source}: {error}") from None
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


def _architecture(shape: Shape, image_size: int, vocab_size: int, context_length: int) -> Architecture:
    limit = shape.text_tower.options["max_position_embeddings"]
    if isinstance(limit, int) and context_length > limit:
        raise ValueError(f"context_length {context_length} is more than the text tower's {limit} positions")
    return Architecture(
        image_tower=shape.image_tower,
        text_tower=TextArchitecture(**shape.text_tower.model_dump(), vocab_size=vocab_size),
        embed_dim=shape.embed_dim,
        image_size=image_size,
        context_length=context_length,
        preprocessing=AS_RELEASED,
    )


def _tokenizer(source: Path, given: Path | None, vocab_size: int, context_length: int) -> tuple[Path, str]:
    vocabulary = find_vocabulary(source, given, vocab_size)
    tokenizer_json = tokenizer_of_vocabulary(vocabulary)
    found = parse_tokenizer(tokenizer_json, context_length).vocab_size
    if found != vocab_size:
        raise ValueError(f"has embeddings for {vocab_size} tokens, but {vocabulary} has {found} different tokens")
    return vocabulary, tokenizer_json


def _any_begins(names: Iterable[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)

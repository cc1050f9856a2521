"""SigLIP 2's tokenizer: that of Gemma, over small letters, with <eos> at the end and padded with <pad>, which is 0."""

import json
from pathlib import Path
from typing import Any

from clip_core.errors import UserError
from clip_core.model.pretrained.checkpoint import read_json
from clip_core.text import parse_tokenizer

END, PADDING = "<eos>", "<pad>"
SMALL_LETTERS = {"type": "Lowercase"}


def tokenizer_of_siglip2(path: Path, vocab_size: int) -> str:
    """The tokenizer.json at `path` as training used it; raises UserError for one of another kind or size.

    The released file does neither make letters small nor know of a length: code around it did (big_vision's config;
    transformers' Siglip2Tokenizer).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; it is the tokenizer that the weights were trained with")
    tree: dict[str, Any] = read_json(path)
    model = tree.get("model") or {}
    vocabulary = model.get("vocab") or {}
    if model.get("type") != "BPE" or (vocabulary.get(PADDING), vocabulary.get(END)) != (0, 1):
        kind = f"{model.get('type')} with {len(vocabulary):,} tokens"
        raise UserError(f"{path}: not Gemma's tokenizer (BPE, {PADDING} 0, {END} 1), but {kind}")
    changed = {"normalizer": _lowering(tree.get("normalizer")), "post_processor": _ending(), "padding": None}
    tokenizer_json = json.dumps(tree | changed | {"truncation": None}, ensure_ascii=False)
    try:
        found = parse_tokenizer(tokenizer_json, 2).vocab_size
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if found != vocab_size:
        raise UserError(f"{path}: has {found:,} tokens, but the weights have embeddings for {vocab_size:,}")
    return tokenizer_json


def is_of_siglip2(tokenizer_json: str) -> bool:
    """Whether this is such a tokenizer.json, as this project keeps it."""
    tree = json.loads(tokenizer_json)
    return tree["model"]["type"] == "BPE" and tree["post_processor"] == _ending()


def tokenizer_config(context_length: int) -> dict[str, Any]:
    """tokenizer_config.json; of this class, transformers takes tokenizer.json as it is."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "padding_side": "right",
        "model_input_names": ["input_ids"],  # no mask: padding is a token like others
        **{f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
    }


def _lowering(normalizer: dict[str, Any] | None) -> dict[str, Any]:
    parts = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    return {"type": "Sequence", "normalizers": parts if SMALL_LETTERS in parts else [SMALL_LETTERS, *parts]}


def _ending() -> dict[str, Any]:
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}]
    end = {"id": END, "ids": [1], "tokens": [END]}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {END: end}}

"""Writes a SigLIP 2 as a folder of transformers."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from clip_core.errors import UserError
from clip_core.files import atomic_write, replacing_folder
from clip_core.model.clip import CLIP
from clip_core.model.contract import TOKENIZER_FILE, read_contract, weights_id
from clip_core.model.pretrained.model_card import model_card
from clip_core.model.pretrained.saving import save_tensors
from clip_core.model.pretrained.siglip import AS_IN_CONFIG, siglip_tensors
from clip_core.model.pretrained.siglip_tokenizer import is_of_siglip2, tokenizer_config
from clip_core.model.pretrained.transformers_config import processor_config


def write_siglip(model: CLIP, folder: Path, out: Path) -> list[str]:
    """Writes the model of the weights folder to `out` and gives the lines that load it there.

    Raises UserError for what transformers' SiglipModel can not hold.
    """
    tokenizer_json = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
    if wrong := _misfits(model, tokenizer_json):
        raise UserError("transformers' SiglipModel can not hold these weights, which have\n  " + "\n  ".join(wrong))
    architecture = model.architecture
    contents = {
        "config.json": config_of_siglip(model),
        "preprocessor_config.json": processor_config(architecture.preprocessing, architecture.image_size, "Siglip"),
        "tokenizer_config.json": tokenizer_config(architecture.context_length),
    }
    with replacing_folder(out) as aside:
        save_tensors(siglip_tensors(model), aside / "model.safetensors")
        for name, content in contents.items():
            atomic_write(aside / name, json.dumps(content, indent=2) + "\n")
        atomic_write(aside / TOKENIZER_FILE, tokenizer_json)
        atomic_write(aside / "README.md", model_card(read_contract(folder), weights_id(folder), "Siglip"))
    return [
        f"transformers.SiglipModel.from_pretrained({str(out)!r})",
        f"transformers.SiglipProcessor.from_pretrained({str(out)!r}, backend='pil')",
    ]


def config_of_siglip(model: CLIP) -> dict[str, Any]:
    """config.json."""
    tower: Any = model.image_tower
    mlp, options = tower.blocks[0].mlp, model.architecture.text_tower.options
    vision = {
        "hidden_size": tower.embed_dim,
        "intermediate_size": mlp.fc1.out_features,
        "num_hidden_layers": len(tower.blocks),
        "num_attention_heads": tower.blocks[0].attn.num_heads,
        "image_size": model.architecture.image_size,
        "patch_size": tower.patch_embed.patch_size[0],
    }
    text = {
        **options,
        "vocab_size": model.architecture.text_tower.vocab_size,
        "projection_size": model.architecture.embed_dim,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": "float32",
        "text_config": {"model_type": "siglip_text_model", **AS_IN_CONFIG, **text},
        "vision_config": {"model_type": "siglip_vision_model", **AS_IN_CONFIG, **vision},
    }


def _misfits(model: CLIP, tokenizer_json: str) -> list[str]:
    tower: Any = model.image_tower
    wrong = []
    if not isinstance(model.image_projection, nn.Identity) or tower.has_class_token:
        wrong.append("an image tower without SigLIP's attention pooling into the features themselves")
    elif type(tower.blocks[0].mlp.act).__name__ != "GELUTanh":
        wrong.append("an image tower with another activation than GELU by tanh")
    if model.logit_bias is None:
        wrong.append("no logit_bias: they never learnt by the sigmoid loss")
    if not is_of_siglip2(tokenizer_json):
        wrong.append("another tokenizer than one of Gemma's kind")
    return wrong

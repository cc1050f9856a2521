"""The JSON files by which transformers knows a Chinese-CLIP."""

from dataclasses import asdict
from typing import Any, Literal

from clip_core.image import Preprocessing
from clip_core.model.clip import CLIP
from clip_core.model.pretrained.released import OWN, RESAMPLE

ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELU": "gelu"}  # timm's classes


def config_of(model: CLIP) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["ChineseCLIPModel"],
        "model_type": "chinese_clip",
        "dtype": "float32",
        "projection_dim": model.architecture.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": text_config(model),
        "vision_config": vision_config(model),
    }


def tokenizer_config(context_length: int) -> dict[str, Any]:
    """tokenizer_config.json.

    Of this class, transformers takes tokenizer.json as it is; its BertTokenizer has rules of its own.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")},
    }


def text_config(model: CLIP) -> dict[str, Any]:
    """The part of config.json for the BERT."""
    known = model.text_tower.encoder.config.to_dict()
    names = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act layer_norm_eps "
        "hidden_dropout_prob attention_probs_dropout_prob max_position_embeddings type_vocab_size pad_token_id"
    )
    return {"model_type": "chinese_clip_text_model", **{name: known[name] for name in names.split()}}


def vision_config(model: CLIP) -> dict[str, Any]:
    """The part of config.json for the ViT; raises ValueError when transformers has no such activation."""
    tower: Any = model.image_tower
    mlp = tower.blocks[0].mlp
    activation = ACTIVATIONS.get(type(mlp.act).__name__)
    if activation is None:
        raise ValueError(f"no format can hold an image tower with the activation {type(mlp.act).__name__}")
    return {
        "model_type": "chinese_clip_vision_model",
        "hidden_size": tower.embed_dim,
        "intermediate_size": mlp.fc1.out_features,
        "projection_dim": model.architecture.embed_dim,
        "num_hidden_layers": len(tower.blocks),
        "num_attention_heads": tower.blocks[0].attn.num_heads,
        "image_size": model.architecture.image_size,
        "patch_size": tower.patch_embed.patch_size[0],
        "hidden_act": activation,
        "layer_norm_eps": tower.norm.eps,
    }


def processor_config(
    preprocessing: Preprocessing, image_size: int, family: Literal["ChineseCLIP", "Siglip"]
) -> dict[str, Any]:
    """preprocessor_config.json: resized to the square directly; what transformers does by default crops the middle.

    Under OWN stands what transformers has no words for.
    """
    ours = {name: value for name, value in asdict(preprocessing).items() if name not in ("mean", "std")}
    return {
        OWN: ours,
        "image_processor_type": f"{family}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": next(number for number, way in RESAMPLE.items() if way == preprocessing.resize),
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing.mean,
        "image_std": preprocessing.std,
    }

"""Takes weights out: as a file of OFA-Sys, which `cn_clip` loads, or as a folder of transformers or timm."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from clip_core.errors import UserError
from clip_core.files import atomic_write, replacing_file, replacing_folder
from clip_core.image import AS_RELEASED, Preprocessing
from clip_core.model.clip import CLIP
from clip_core.model.contract import TOKENIZER_FILE, Architecture, Contract, read_contract, weights_id
from clip_core.model.pretrained.image_side import ImageSide, timm_folder
from clip_core.model.pretrained.model_card import model_card
from clip_core.model.pretrained.names import OFA, OFA_RESNET, TRANSFORMERS, to_theirs
from clip_core.model.pretrained.recognise import name_of
from clip_core.model.pretrained.released_vocabulary import is_released_text, vocabulary_of
from clip_core.model.pretrained.saving import check_export_place, save_checkpoint, save_tensors
from clip_core.model.pretrained.siglip_export import write_siglip
from clip_core.model.pretrained.transformers_config import (
    config_of,
    processor_config,
    tokenizer_config,
    vision_config,
)
from clip_core.model.registry import SIGLIP_TEXT
from clip_core.model.weights import load_weights

Format = Literal["ofa", "transformers", "timm"]
CN_CLIP_NAMES = {  # vision_model_name, text_model_name and input_resolution of cn_clip.clip.load_from_name
    "rn50": ("RN50", "RBT3-chinese", 224),
    "vit-b-32": ("ViT-B-32", "RoBERTa-wwm-ext-base-chinese", 224),
    "vit-b-16": ("ViT-B-16", "RoBERTa-wwm-ext-base-chinese", 224),
    "vit-l-14": ("ViT-L-14", "RoBERTa-wwm-ext-base-chinese", 224),
    "vit-l-14-336": ("ViT-L-14-336", "RoBERTa-wwm-ext-base-chinese", 336),
    "vit-h-14": ("ViT-H-14", "RoBERTa-wwm-ext-large-chinese", 224),
}
AS_IN_TRANSFORMERS = replace(AS_RELEASED, convert="before", background="white")  # with its backend for Pillow


def export_weights(folder: Path, out: Path, form: Format) -> None:
    """Writes the weights folder to `out` in another format, whole or not at all, and says how to load it there.

    Raises UserError when the format can not hold this model, or when `out` is there already.
    """
    start = time.monotonic()
    check_export_place(out)
    contract = read_contract(folder)
    print(f"{folder}: {name_of(contract.architecture)}, {form}", flush=True)
    if form == "timm":
        lines = _write_timm(load_weights(folder), out)
    elif form == "transformers" and contract.architecture.text_tower.name == SIGLIP_TEXT:
        lines = write_siglip(load_weights(folder), folder, out)
    else:
        lines = _write_chinese_clip(folder, contract, out, form)
    for note in _notes(contract, AS_RELEASED if form == "ofa" else AS_IN_TRANSFORMERS):
        print(f"note: {note}")
    print(f"wrote {out} in {time.monotonic() - start:.1f} s; to load it:")
    print("\n".join(f"  {line}" for line in lines))


def _write_chinese_clip(folder: Path, contract: Contract, out: Path, form: Format) -> list[str]:
    if (name := contract.architecture.text_tower.name) != "bert":
        raise UserError(f"the format {form} can not hold these weights: its text tower is a BERT, not {name!r}")
    vocabulary = _vocabulary(folder, form)
    model = load_weights(folder)
    tensors = _named(model, form)
    if form == "ofa":
        _check_cn_clip(model, vocabulary)
        return _write_ofa(tensors, contract, out)
    return _write_transformers(tensors, model, vocabulary, folder, out)


def _write_timm(model: CLIP, out: Path) -> list[str]:
    """The image tower alone; a projection is its classifier."""
    projection = model.image_projection.state_dict()
    side = ImageSide(
        recognised=model.architecture.image_tower,
        image_size=model.architecture.image_size,
        tower=model.image_tower.state_dict(),
        projection=projection.get("weight"),
        projection_bias=projection.get("bias"),
        logit_scale=model.logit_scale.item(),
    )
    tensors, config = timm_folder(side, model.architecture.preprocessing)
    with replacing_folder(out) as aside:
        save_tensors(tensors, aside / "model.safetensors")
        atomic_write(aside / "config.json", json.dumps(config, indent=2) + "\n")
    return [f"timm.create_model('local-dir:{out}', pretrained=True)"]


def _vocabulary(folder: Path, form: Format) -> str:
    try:
        return vocabulary_of((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder}: the format {form} can not hold these weights: {error}") from None


def _named(model: CLIP, form: Format) -> dict[str, Tensor]:
    """The tensors in the names of the format, which has no names for those of other towers."""
    resnet = "image_tower.head.pos_embed" in model.state_dict()
    if resnet and form == "transformers":
        raise UserError(
            "transformers has no class for a Chinese-CLIP with a ResNet (rn50): its ChineseCLIPModel has a ViT alone; "
            "export it with --format ofa"
        )
    try:
        return to_theirs(model.state_dict(), TRANSFORMERS if form == "transformers" else OFA_RESNET if resnet else OFA)
    except ValueError as error:
        name = model.architecture.image_tower.name
        raise UserError(f"the format {form} can not hold the image tower {name}: {error}") from None


def _check_cn_clip(model: CLIP, vocabulary: str) -> None:
    """Raises UserError for what cn_clip has fixed in its code."""
    preprocessing, text = model.architecture.preprocessing, model.text_tower.encoder.config
    wrong = []
    if not is_released_text(vocabulary):
        wrong.append("another vocabulary than the one of Chinese-CLIP, which cn_clip brings with it")
    if (preprocessing.mean, preprocessing.std) != (AS_RELEASED.mean, AS_RELEASED.std):
        wrong.append("another mean or std of the pictures than CLIP's")
    if hasattr(model.image_tower, "blocks") and vision_config(model)["hidden_act"] != "quick_gelu":
        wrong.append("an image tower with another activation than QuickGELU")
    if (text.hidden_act, text.layer_norm_eps) != ("gelu", 1e-12):
        wrong.append("a BERT with another activation than GELU or another LayerNorm eps than 1e-12")
    if wrong:
        raise UserError("the format ofa can not hold these weights, which have\n  " + "\n  ".join(wrong))


def _write_ofa(tensors: dict[str, Tensor], contract: Contract, out: Path) -> list[str]:
    name = name_of(contract.architecture)
    state_dict = {f"module.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    with replacing_file(out) as aside:
        save_checkpoint({"epoch": 0, "step": 0, "name": name, "state_dict": state_dict}, aside)
    return how_cn_clip_loads(contract.architecture, out)


def how_cn_clip_loads(architecture: Architecture, out: Path) -> list[str]:
    """What to write in Python to load a file of this architecture; why there is nothing, if so."""
    name, image_size = name_of(architecture), architecture.image_size
    if name not in CN_CLIP_NAMES or CN_CLIP_NAMES[name][2] != image_size:
        return [
            f"cn_clip has no model config of this shape ({name}, {image_size} x {image_size});",
            "it needs one in its clip/model_configs before load_from_name can read the file",
        ]
    vision, text, size = CN_CLIP_NAMES[name]
    return [
        f"cn_clip.clip.load_from_name({str(out)!r}, device='cpu', vision_model_name={vision!r},",
        f"    text_model_name={text!r}, input_resolution={size})",
    ]


def _write_transformers(tensors: dict[str, Tensor], model: CLIP, vocabulary: str, folder: Path, out: Path) -> list[str]:
    architecture = model.architecture
    contents = {
        "config.json": config_of(model),
        "preprocessor_config.json": processor_config(
            architecture.preprocessing, architecture.image_size, "ChineseCLIP"
        ),
        "tokenizer_config.json": tokenizer_config(architecture.context_length),
    }
    with replacing_folder(out) as aside:
        save_tensors(tensors, aside / "model.safetensors")
        for name, content in contents.items():
            atomic_write(aside / name, json.dumps(content, indent=2) + "\n")
        atomic_write(aside / "vocab.txt", vocabulary)
        atomic_write(aside / TOKENIZER_FILE, (folder / TOKENIZER_FILE).read_bytes())
        atomic_write(aside / "README.md", model_card(read_contract(folder), weights_id(folder), "ChineseCLIP"))
    return [
        f"transformers.ChineseCLIPModel.from_pretrained({str(out)!r})",
        f"transformers.ChineseCLIPProcessor.from_pretrained({str(out)!r}, backend='pil')",
    ]


def _notes(contract: Contract, there: Preprocessing) -> list[str]:
    """What the format can not say, and so whoever loads it must know."""
    here = contract.preprocessing
    differing = [
        f"{name} is {getattr(here, name)} here, {getattr(there, name)} there"
        for name in ("convert", "orientation", "grey16", "background")
        if getattr(here, name) != getattr(there, name)
    ]
    notes = [f"pictures of rare kinds are prepared otherwise there: {'; '.join(differing)}"] if differing else []
    if contract.context_length != 52 and contract.architecture.text_tower.name == "bert":
        notes.append(f"texts are cut at {contract.context_length} tokens here; cn_clip cuts them at 52 if not told")
    if contract.architecture.matryoshka:
        notes.append(
            f"features were also trained at widths {contract.architecture.matryoshka}; the format can not say it"
        )
    return notes

"""Tiny models of other kinds than the built-in one, for the tests of training."""

from clip_core.config.model import ImageTower
from clip_core.model.clip import CLIP, make_clip
from clip_core.model.contract import Architecture
from clip_core.text import build_tokenizer
from tests.tiny import tiny_architecture

VIT = ImageTower(  # 16 patches of a picture of 32 x 32
    name="vit_base_patch16_clip_quickgelu_224",
    options={"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8},
)


def vit_architecture(tokenizer_json: str | None = None, dropout: float = 0.1) -> Architecture:
    """The tiny model with CLIP's vision transformer, which has no batch normalisation."""
    architecture = tiny_architecture(tokenizer_json or build_tokenizer(["一只猫", "ok"]), dropout)
    return architecture.model_copy(update={"image_tower": VIT})


def vit_clip(tokenizer_json: str | None = None, dropout: float = 0.1, seed: int = 1) -> CLIP:
    return make_clip(vit_architecture(tokenizer_json, dropout), seed)

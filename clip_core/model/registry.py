"""The models by name: Chinese-CLIP's five with ViT-B/32, and the built-in tiny one.

`python -m clip_core.model.costs` prints what each is made of. Source of the shapes: the reference's
`clip/model_configs/*.json` (paper, table 6; its 24 text heads of H/14 are 16 in code and weights).
"""

from dataclasses import dataclass

from clip_core.config.model import EMBED_DIMS, CustomModel, ImageTower, NamedModel, TextTower

VOCABULARY = 21128  # tokens of the Chinese BERT that all released models share


@dataclass(frozen=True)
class Shape:
    """What a model is made of, but for the sizes that its tokenizer and the pictures decide."""

    image_tower: ImageTower
    text_tower: TextTower
    embed_dim: int


def _bert(hidden_size: int, num_hidden_layers: int, num_attention_heads: int) -> TextTower:
    return TextTower(
        name="bert",
        options={
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": 4 * hidden_size,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "max_position_embeddings": 512,
        },
    )


def _clip(name: str) -> ImageTower:
    return ImageTower(name=name, options={})


RBT3, ROBERTA_BASE, ROBERTA_LARGE = _bert(768, 3, 12), _bert(768, 12, 12), _bert(1024, 24, 16)
MODELS = {
    "tiny": Shape(
        ImageTower(name="resnet10t", options={"channels": (32, 64, 128, 256), "stem_width": 16}),
        TextTower(
            name="bert",
            options={
                "hidden_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 512,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
        ),
        EMBED_DIMS["tiny"],
    ),
    "rn50": Shape(_clip("resnet50_clip"), RBT3, EMBED_DIMS["rn50"]),
    "vit-b-32": Shape(_clip("vit_base_patch32_clip_quickgelu_224"), ROBERTA_BASE, EMBED_DIMS["vit-b-32"]),
    "vit-b-16": Shape(_clip("vit_base_patch16_clip_quickgelu_224"), ROBERTA_BASE, EMBED_DIMS["vit-b-16"]),
    "vit-l-14": Shape(_clip("vit_large_patch14_clip_quickgelu_224"), ROBERTA_BASE, EMBED_DIMS["vit-l-14"]),
    "vit-l-14-336": Shape(_clip("vit_large_patch14_clip_quickgelu_336"), ROBERTA_BASE, EMBED_DIMS["vit-l-14-336"]),
    # LAION's H/14 has the exact GELU; Chinese-CLIP trained and released it with QuickGELU.
    "vit-h-14": Shape(_clip("vit_huge_patch14_clip_quickgelu_224"), ROBERTA_LARGE, EMBED_DIMS["vit-h-14"]),
}


def shape_of(model: NamedModel | CustomModel) -> Shape:
    """The shape that the params name, or spell out."""
    if isinstance(model, CustomModel):
        return Shape(model.image_tower, model.text_tower, model.embed_dim)
    return MODELS[model.name]

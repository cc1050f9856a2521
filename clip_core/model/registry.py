"""The models by name: the built-in tiny one, Chinese-CLIP's five with ViT-B/32, and SigLIP 2 for fixed resolutions.

`python -m clip_core.model.costs` prints what each is made of. Source of the shapes: the reference's
`clip/model_configs/*.json` (paper, table 6; its 24 text heads of H/14 are 16 in code and weights), and for SigLIP 2 the
config.json of google/siglip2-* (docs/models.md).
"""

from dataclasses import dataclass

from clip_core.config.model import EMBED_DIMS, CustomModel, ImageTower, NamedModel, Options, TextTower
from clip_core.image import AS_RELEASED, AS_SIGLIP2, Preprocessing

VOCABULARY = 21128  # tokens of the Chinese BERT that all released Chinese-CLIPs share
SIGLIP_TEXT = "siglip_text_model"  # what transformers calls SigLIP's text tower


@dataclass(frozen=True)
class Family:
    """What released weights were trained with, beside their shapes."""

    vocabulary: int  # tokens
    context_length: int
    preprocessing: Preprocessing
    logit_bias: bool


CHINESE_CLIP = Family(VOCABULARY, 52, AS_RELEASED, logit_bias=False)
SIGLIP2 = Family(256_000, 64, AS_SIGLIP2, logit_bias=True)


@dataclass(frozen=True)
class Shape:
    """What a model is made of, but for the sizes that its tokenizer and the pictures decide."""

    image_tower: ImageTower
    text_tower: TextTower
    embed_dim: int

    @property
    def family(self) -> Family:
        return SIGLIP2 if self.text_tower.name == SIGLIP_TEXT else CHINESE_CLIP


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


def _siglip2(size: str, patch_size: int, image_size: int) -> Shape:
    """Both towers are of one size; features are as wide as they are."""
    width, layers, heads, hidden = SIGLIP2_SIZES[size]
    options: Options = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "max_position_embeddings": 64,
    }
    name = f"vit_{size}_patch{patch_size}_siglip_{image_size}"
    return Shape(ImageTower(name=name, options=SIGLIP2_VIT), TextTower(name=SIGLIP_TEXT, options=options), width)


SIGLIP2_SIZES = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096), "so400m": (1152, 27, 16, 4304)}
# As in their code and transformers; timm has it for some of them only.
SIGLIP2_VIT: Options = {"act_layer": "gelu_tanh"}
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
    "siglip2-b-16-224": _siglip2("base", 16, 224),
    "siglip2-b-16-256": _siglip2("base", 16, 256),
    "siglip2-b-16-384": _siglip2("base", 16, 384),
    "siglip2-l-16-256": _siglip2("large", 16, 256),
    "siglip2-l-16-384": _siglip2("large", 16, 384),
    "siglip2-so400m-14-224": _siglip2("so400m", 14, 224),
    "siglip2-so400m-14-384": _siglip2("so400m", 14, 384),  # 27 patches a side; the last 6 pixels are not looked at
    "siglip2-so400m-16-256": _siglip2("so400m", 16, 256),
    "siglip2-so400m-16-384": _siglip2("so400m", 16, 384),
}


def shape_of(model: NamedModel | CustomModel) -> Shape:
    """The shape that the params name, or spell out."""
    if isinstance(model, CustomModel):
        return Shape(model.image_tower, model.text_tower, model.embed_dim)
    return MODELS[model.name]

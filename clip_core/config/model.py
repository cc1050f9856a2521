"""`model`: the shape of both towers."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from clip_core.config.section import Count, Name, Section

EMBED_DIMS = {  # of the models in clip_core/model/registry.py; narrower features are checked against them here
    "tiny": 128,
    "rn50": 1024,
    "vit-b-32": 512,
    "vit-b-16": 512,
    "vit-l-14": 768,
    "vit-l-14-336": 768,
    "vit-h-14": 1024,
    "siglip2-b-16-224": 768,
    "siglip2-b-16-256": 768,
    "siglip2-b-16-384": 768,
    "siglip2-l-16-256": 1024,
    "siglip2-l-16-384": 1024,
    "siglip2-so400m-14-224": 1152,
    "siglip2-so400m-14-384": 1152,
    "siglip2-so400m-16-256": 1152,
    "siglip2-so400m-16-384": 1152,
}
Options = dict[str, int | float | str | bool | tuple[int, ...]]


class ImageTower(Section):
    name: Name  # of a timm model
    options: Options  # passed to timm.create_model


class TextTower(Section):
    name: Name  # of a kind of encoder in transformers: bert, roberta, ...
    options: Options  # of its configuration, in transformers' words

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "TextTower":
        width, heads = self.options.get("hidden_size"), self.options.get("num_attention_heads")
        if isinstance(width, int) and isinstance(heads, int) and (heads < 1 or width % heads):
            raise ValueError(f"hidden_size ({width}) must be a multiple of num_attention_heads ({heads})")
        return self


def falling(widths: tuple[int, ...]) -> tuple[int, ...]:
    """`widths`, if each is smaller than the one before."""
    if list(widths) != sorted(set(widths), reverse=True):
        raise ValueError(f"each width must be smaller than the one before, not {list(widths)}")
    return widths


class AnyModel(Section):
    """What every model has."""

    image_size: Annotated[int, Field(ge=8, le=1024)]
    context_length: Annotated[int, Field(ge=4, le=512)]  # tokens with [CLS] and [SEP]
    matryoshka: Annotated[tuple[Count, ...], AfterValidator(falling)]  # narrower features that train too; empty: none


def narrower(widths: tuple[int, ...], embed_dim: int) -> None:
    """Raises ValueError unless the widths are less than the features' own."""
    if widths and widths[0] >= embed_dim:
        raise ValueError(f"matryoshka: {widths[0]} is not less than embed_dim ({embed_dim})")


class NamedModel(AnyModel):
    """A model whose shape stands in `clip_core/model/registry.py`."""

    name: Literal[
        "tiny",
        "rn50",
        "vit-b-32",
        "vit-b-16",
        "vit-l-14",
        "vit-l-14-336",
        "vit-h-14",
        "siglip2-b-16-224",
        "siglip2-b-16-256",
        "siglip2-b-16-384",
        "siglip2-l-16-256",
        "siglip2-l-16-384",
        "siglip2-so400m-14-224",
        "siglip2-so400m-14-384",
        "siglip2-so400m-16-256",
        "siglip2-so400m-16-384",
    ]

    @model_validator(mode="after")
    def _widths_are_narrower(self) -> "NamedModel":
        narrower(self.matryoshka, EMBED_DIMS[self.name])
        return self


class CustomModel(AnyModel):
    """A model of one's own: any image tower of timm with any text encoder of transformers."""

    name: Literal["custom"]
    image_tower: ImageTower
    text_tower: TextTower
    embed_dim: Count

    @model_validator(mode="after")
    def _widths_are_narrower(self) -> "CustomModel":
        narrower(self.matryoshka, self.embed_dim)
        return self


Model = Annotated[NamedModel | CustomModel, Field(discriminator="name")]

"""Which columns of a saved data set hold the pictures and the captions: those that params name, or the obvious ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.config.sources import SavedSource
from clip_core.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

CAPTIONS = ("caption", "captions", "text", "texts")  # the names that most data sets use
TOLD = ("split", "language", "licence")  # of a row, where there is such a column of texts


@dataclass(frozen=True)
class Columns:
    image: str
    captions: tuple[str, ...]
    told: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [self.image, *self.captions, *self.told]


def columns_of(data: SavedSource, schema: "pa.Schema", features: object, file: Path) -> Columns:
    """The columns to read; raises UserError where one is missing, of a wrong type, or where several would do."""
    texts = [field.name for field in schema if _is_text(field.type)]
    captions = [field.name for field in schema if _is_text(field.type) or _is_list_of_texts(field.type)]
    captions = [name for name in captions if name not in TOLD]
    if not isinstance(features, dict):
        features = {}
    pictures = [name for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "Image"]
    usual = [name for name in captions if name in CAPTIONS]
    image = data.image or _only(pictures, "pictures (of the feature Image)", "data.image", file)
    chosen = data.captions or (_only(usual or captions, "captions", "data.captions", file),)
    for name in (image, *chosen):
        if schema.names.count(name) != 1:
            raise UserError(f"{file}: no single column {name!r}; its columns are {', '.join(schema.names)}")
    if not _holds_bytes(kind := schema.field(image).type):
        raise UserError(f"{file}: the column {image!r} holds {kind}, no pictures; `data.image` names another")
    if wrong := [name for name in chosen if name not in captions]:
        kind = schema.field(wrong[0]).type
        raise UserError(f"{file}: the column {wrong[0]!r} holds {kind}, no texts; `data.captions` names others")
    return Columns(image, chosen, tuple(name for name in TOLD if texts.count(name) == 1))


def _only(names: list[str], what: str, key: str, file: Path) -> str:
    if len(names) != 1:
        found = f"{', '.join(names)} all could be" if names else "no column is"
        raise UserError(f"{file}: {found} that of the {what}; `{key}` in params.yaml names it")
    return names[0]


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list_of_texts(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and _is_text(kind.value_type)


def _holds_bytes(kind: "pa.DataType") -> bool:
    """Whether it is that of encoded pictures: their bytes, or a struct with them."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        inner = [kind.field(i).type for i in range(kind.num_fields) if kind.field(i).name == "bytes"]
        return len(inner) == 1 and not pa.types.is_struct(inner[0]) and _holds_bytes(inner[0])
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

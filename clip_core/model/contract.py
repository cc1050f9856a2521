"""What a weights folder says about itself (`model.json`), readable without torch."""

import hashlib
import json
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError, model_validator

from clip_core.config.model import ImageTower, TextTower
from clip_core.config.section import Count, Section, resembling
from clip_core.errors import UserError
from clip_core.files import sha256_file
from clip_core.image import Preprocessing

FORMAT = "clip_core/1"  # of weights folders
MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_SUM = "model.safetensors.sha256"  # in an export: of the weights that it was made of
TOKENIZER_FILE = "tokenizer.json"
UNREADABLE = "not a model this version can read"


class TextArchitecture(TextTower):
    """A text tower with the size that the tokenizer decides."""

    vocab_size: Count


class Architecture(Section):
    """All that is needed to build the model without its weights."""

    image_tower: ImageTower
    text_tower: TextArchitecture
    embed_dim: Count
    image_size: Count
    context_length: Count
    preprocessing: Preprocessing
    logit_bias: bool = False  # of the sigmoid loss
    matryoshka: tuple[Count, ...] = ()  # narrower widths of the features that were trained too

    def narrowed(self, width: int | None) -> "Architecture":
        """The same with features of their first `width` numbers; None: all."""
        if width is None:
            return self
        narrower = tuple(other for other in self.matryoshka if other < width)
        return self.model_copy(update={"embed_dim": width, "matryoshka": narrower})

    @model_validator(mode="after")
    def _text_tower_has_positions(self) -> Self:
        positions = self.text_tower.options.get("max_position_embeddings")
        if isinstance(positions, int) and self.context_length > positions:
            raise ValueError(f"context_length is {self.context_length}, but the text tower has {positions} positions")
        return self


class Made(Section):
    """Where the weights come from: fingerprints, no paths and no times, so that the same run writes the same bytes."""

    stage: str
    params: str  # hash of what the stage reads of them
    data: str  # hash of the training data's manifest
    parent: str | None  # weights_id of what training started from
    text_tower: str  # what the text tower started from
    adopted: tuple[str, ...] = ()  # where other code or packages went on with a training that was interrupted


class Contract(Section):
    """The content of `model.json`."""

    format: Literal["clip_core/1"] = FORMAT
    architecture: Architecture
    tokenizer: Literal["tokenizer.json"] = "tokenizer.json"
    made: Made

    @property
    def embed_dim(self) -> int:
        return self.architecture.embed_dim

    @property
    def image_size(self) -> int:
        return self.architecture.image_size

    @property
    def context_length(self) -> int:
        return self.architecture.context_length

    @property
    def preprocessing(self) -> Preprocessing:
        return self.architecture.preprocessing


def read_contract(folder: Path) -> Contract:
    """The contract in the weights folder; raises UserError when it is not one that this version can read."""
    path = folder / MODEL_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_file() and (folder.parent / MODEL_FILE).is_file():
            raise UserError(f"{folder}: a file in a weights folder; name the folder, {folder.parent}") from None
        if folder.is_file():
            raise UserError(
                f"{folder}: not a weights folder, but a file; a checkpoint of another project becomes one with "
                f"`python -m clip_core.model.pretrained import {folder} WEIGHTS_FOLDER`"
            ) from None
        whole = f"{MODEL_FILE}, {WEIGHTS_FILE} and {TOKENIZER_FILE}"
        raise UserError(
            f"{folder}: not a weights folder: it has no {MODEL_FILE} (a weights folder holds {whole})"
        ) from None
    except ValueError as error:  # bytes that are no text, text that is no JSON
        raise UserError(f"{path}: {UNREADABLE}: no JSON ({error}); copy the folder again") from None
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: {UNREADABLE}: {_wrong_format(found)}")
    try:
        return Contract.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        known = {name for section in Section.__subclasses__() for name in section.model_fields}
        lines = [
            f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r:.80})"
            + (resembling(str(e["loc"][-1]), known) if e["type"] == "extra_forbidden" else "")
            for e in error.errors()
        ]
        raise UserError(
            f"{path}: {UNREADABLE}:\n" + "\n".join(lines) + "\nIt was written by another version or changed by hand: "
            "use the version that wrote it, or make the weights again"
        ) from None


def _wrong_format(found: object) -> str:
    name, _, number = str(found).partition("/")
    if name == FORMAT.partition("/")[0] and number.isdecimal():
        return f"its format is {found}, newer than {FORMAT}: update this project, then load it again"
    return f"its format is {found!r}, and {FORMAT} is wanted: this folder is of another project"


def weights_id(folder: Path, width: int | None = None) -> str:
    """The fingerprint (16 hex digits) of what the model in `folder` computes: weights, tokenizer, architecture.

    That of an export is that of the weights folder it was made of, at its width.
    """
    architecture = read_contract(folder).architecture.narrowed(width).model_dump(mode="json")
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    is_export = (folder / WEIGHTS_SUM).exists() and not (folder / WEIGHTS_FILE).exists()
    if is_export:
        digest.update((folder / WEIGHTS_SUM).read_bytes())
    for name in (TOKENIZER_FILE,) if is_export else (WEIGHTS_FILE, TOKENIZER_FILE):
        try:
            digest.update(sha256_file(folder / name).encode())
        except FileNotFoundError:
            raise UserError(f"{folder}: not a whole weights folder: it has no {name}; copy the folder again") from None
    return digest.hexdigest()[:16]

"""What a weights folder says about itself (`model.json`), readable without torch."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from clip_core.config import Count, ImageTower, Section, TextTower
from clip_core.files import sha256_file
from clip_core.image import Preprocessing

MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"


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


class Made(Section):
    """Where the weights come from: fingerprints, no paths and no times, so that the same run writes the same bytes."""

    stage: str
    params: str  # hash of what the stage reads of them
    data: str  # hash of the training data's manifest
    parent: str | None  # release of the weights that training started from
    text_tower: str  # what the text tower started from


class Contract(Section):
    """The content of `model.json`."""

    format: Literal["clip_core/1"] = "clip_core/1"
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


def hash_of(*parts: object) -> str:
    """A fingerprint (16 hex digits) of sections of params and of anything that JSON can hold."""
    plain = [part.model_dump(mode="json") if isinstance(part, Section) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def read_contract(folder: Path) -> Contract:
    """The contract in the weights folder; raises ValueError when it is not one that this version can read."""
    path = folder / MODEL_FILE
    try:
        return Contract.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a weights folder: it has no {MODEL_FILE}") from None
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r:.80})" for e in error.errors()]
        raise ValueError(f"{path}: not a model this version can read:\n" + "\n".join(lines)) from None


def release_of(folder: Path) -> str:
    """The fingerprint (16 hex digits) of what the model in `folder` computes: weights, tokenizer, architecture."""
    architecture = read_contract(folder).architecture.model_dump(mode="json")
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name in (WEIGHTS_FILE, TOKENIZER_FILE):
        try:
            digest.update(sha256_file(folder / name).encode())
        except FileNotFoundError:
            raise ValueError(f"{folder}: not a weights folder: it has no {name}") from None
    return digest.hexdigest()[:16]

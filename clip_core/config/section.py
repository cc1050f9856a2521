"""What all sections of `params.yaml` share: their base class and the kinds of values."""

import difflib
import hashlib
import json
from collections.abc import Iterable
from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(min_length=1)]
Template = Annotated[str, Field(pattern=r"\{\}")]


def _inside(name: str) -> str:
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError("must be relative to the section's `path` and inside it; name the folder with `path`")
    return name


Inside = Annotated[Name, AfterValidator(_inside)]


def resembling(name: str, known: Iterable[str]) -> str:
    """A question that names the one of `known` that was probably meant."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class Section(BaseModel):
    """A part of `params.yaml`: no defaults, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def hash_of(*parts: object) -> str:
    """A fingerprint (16 hex digits) of sections of params and of anything that JSON can hold."""
    plain = [part.model_dump(mode="json") if isinstance(part, Section) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

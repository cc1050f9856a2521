"""Reads YAML into sections: everything that is wrong is named at once, with its value and what is allowed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from clip_core.config.section import Section, resembling
from clip_core.errors import UserError

AnySection = TypeVar("AnySection", bound=Section)
MOVED = {  # keys that an older params.yaml or recipe has elsewhere -> where they stand now
    "bert_folder": "text_start, with `from: bert_folder`",
    "log_every": "intervals.warm_start, intervals.stage1 and intervals.stage2",
    "save_every": "intervals.warm_start, intervals.stage1 and intervals.stage2",
    "evaluate_every": "intervals.stage1 and intervals.stage2",
}


def read_yaml(path: Path) -> dict:
    """The mapping in the YAML file `path`, parsed as DVC parses it; comments are kept for writing it back."""
    try:
        tree = YAML().load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run from the project's folder.") from None
    except OSError as error:
        raise UserError(f"{path}: can not be read: {error.strerror}. A YAML file is wanted.") from None
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold a mapping of sections, not {type(tree).__name__}")
    return tree


def looked_up(tree: dict, key: str, path: Path) -> object:
    """What `tree` (as read from `path`) has under the dotted key, as `index.top_k`."""
    found: object = tree
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            raise UserError(f"{path}: {key} is missing")
        found = found[part]
    return found


def existing(path: Path, key: str) -> Path:
    """`path`, which `key` names; raises UserError when nothing is there."""
    if not path.exists():
        raise UserError(f"{key}: {path}: no such file or folder; put it there or name another")
    return path


def validated(kind: type[AnySection], tree: dict, path: Path) -> AnySection:
    """`tree` (as read from `path`) as a section of this kind; raises UserError that lists all that is wrong."""
    if foreign := list(not_in_json(tree)):
        lines = [
            f"  {key}: {type(value).__name__} {value} (put it in quotes if text is meant)" for key, value in foreign
        ]
        raise UserError(f"{path}: neither number nor text:\n" + "\n".join(lines))
    try:
        return kind.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        lines = [f"  {place(e)}: {e['msg']} (found {e['input']!r:.80}){hint(e)}" for e in error.errors()]
        raise UserError(f"{path}: {len(lines)} wrong:\n" + "\n".join(lines)) from None


def not_in_json(node: object, place: str = "") -> Iterator[tuple[str, object]]:
    """What YAML knows and JSON does not, as unquoted dates, each with its place."""
    if isinstance(node, dict):
        for key, value in node.items():
            inner = f"{place}.{key}" if place else str(key)
            yield from not_in_json(value, inner)
            if not isinstance(key, str):
                yield inner, key
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from not_in_json(value, f"{place}.{i}")
    elif not isinstance(node, str | int | float | None):
        yield place, node


CHOSEN = (
    "data",
    "model",
    "text_start",
    "init",
    "augmentation",
)  # pydantic puts the choice behind their names


def place(error: ErrorDetails) -> str:
    """The key that is wrong, as the file has it."""
    loc = [str(part).removesuffix("_") for part in error["loc"]]
    keys = [part for part, before in zip(loc, ["", *loc], strict=False) if before not in CHOSEN]
    if error["type"].startswith("union_tag"):
        discriminator = error["ctx"]["discriminator"]  # 'source', or 'from_' | 'from' where it has an alias
        keys.append(discriminator.rpartition(" ")[2].strip("'"))
    return ".".join(keys)


def hint(error: ErrorDetails) -> str:
    """For an unknown key where it stands now, or the known one that it resembles."""
    key = str(error["loc"][-1])
    if error["type"] == "extra_forbidden" and key in MOVED:
        return f"; it has moved: set it in {MOVED[key]}"
    return resembling(key, known_keys()) if error["type"] == "extra_forbidden" and key not in known_keys() else ""


def known_keys() -> set[str]:
    """Every key that any section knows."""
    sections = list(Section.__subclasses__())
    for section in sections:
        sections += section.__subclasses__()  # the list grows as it is gone through
    fields = [named for section in sections for named in section.model_fields.items()]
    return {field.alias or name for name, field in fields}

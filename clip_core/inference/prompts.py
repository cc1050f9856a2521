"""Prompts: how a class name becomes the vector that pictures are compared with, in several templates at once."""

import ast
import re
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from clip_core.config.section import resembling
from clip_core.errors import UserError

Encode = Callable[[list[str]], np.ndarray]  # texts -> (n, width), L2-normalised
REFERENCE = "eval/cvinw_zeroshot_templates.py"  # in the package cn_clip
ENDING = "_templates"  # of its lists' names
NEGATIONS = re.compile("没有|不是|并非|^没")
CLASSES_AT_ONCE = 50


def templates_of(domain: str) -> tuple[str, ...]:
    """Our templates for a domain of prompts.toml."""
    return _found(domain, _ours(), "prompts.toml")


def reference_templates(name: str) -> tuple[str, ...]:
    """The installed `cn_clip` package's templates in the list `<name>_templates`, repetitions as they are.

    Its file is read, never run: each template there is a lambda of one formatted string.
    """
    spec = find_spec("cn_clip")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("cn_clip is not installed: pip install --no-deps cn-clip==1.6.0, or take our own templates")
    file = Path(spec.submodule_search_locations[0], REFERENCE)
    return _found(name, _in_source(file), str(file))


def classifier(encode_texts: Encode, class_names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """One unit vector a class, the direction of the mean of its prompts' unit vectors: float32 (classes, width).

    As in CLIP and the reference's `zeroshot_evaluation.py`.
    """
    return unit(prompted(encode_texts, class_names, templates).mean(axis=1))


def prompted(encode_texts: Encode, class_names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """The unit vectors of all prompts: (classes, templates, width)."""
    parts = []
    for start in range(0, len(class_names), CLASSES_AT_ONCE):
        some = class_names[start : start + CLASSES_AT_ONCE]
        parts.append(encode_texts([template.replace("{}", name) for name in some for template in templates]))
    return np.concatenate(parts).reshape(len(class_names), len(templates), -1)


def negations(class_names: Sequence[str]) -> list[str]:
    """The class names that say what is not there, which models of this kind do not understand (paper, 4.3)."""
    return [name for name in class_names if NEGATIONS.search(name)]


def unit(rows: np.ndarray) -> np.ndarray:
    """The rows at length 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@cache
def _ours() -> dict[str, list[str]]:
    return tomllib.loads(files("clip_core.inference").joinpath("prompts.toml").read_text(encoding="utf-8"))


def _found(name: str, known: dict[str, list[str]], where: str) -> tuple[str, ...]:
    if name not in known:
        raise UserError(f"{where}: no templates named {name!r}{resembling(name, known)} There are {', '.join(known)}")
    return tuple(known[name])


@cache
def _in_source(file: Path) -> dict[str, list[str]]:
    """The lists of templates in the reference's file."""
    lists = {}
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List) and isinstance(node.targets[0], ast.Name):
            lists[node.targets[0].id.removesuffix(ENDING)] = [_template(entry, file) for entry in node.value.elts]
    return lists


def _template(entry: ast.expr, file: Path) -> str:
    match entry:
        case ast.Lambda(body=ast.JoinedStr(values=parts)):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
    raise UserError(f"{file}, line {entry.lineno}: a template is no lambda of one string; cn-clip 1.6.0 is expected")

"""Merges a recipe (an overlay of `params.yaml`) into `params.yaml`: `python -m clip_core.recipe recipes/smoke.yaml`."""

import argparse
import copy
import io
import sys
from pathlib import Path

from ruamel.yaml import YAML

from clip_core.files import atomic_write
from clip_core.params_file import check_params, read_yaml


def merged(tree: dict, overlay: dict) -> dict:
    """`tree` with the values of `overlay`; a section whose `source` changes is replaced whole."""
    result = copy.copy(tree)  # the nodes below may be shared through YAML anchors: they are replaced, never changed
    for key, value in overlay.items():
        old = tree.get(key)
        merges = isinstance(old, dict) and isinstance(value, dict) and value.get("source") in (None, old.get("source"))
        result[key] = merged(old, value) if merges else value
    return result


def apply_recipe(recipe: Path, params_file: Path) -> None:
    """Rewrites `params_file` with `recipe` merged in; a wrong one raises ValueError and writes nothing."""
    tree = merged(read_yaml(params_file), read_yaml(recipe))
    check_params(tree, recipe)
    yaml = YAML()
    yaml.width = 120
    text = io.StringIO()
    yaml.dump(tree, text)
    atomic_write(params_file, text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--params-file", type=Path, default=Path("params.yaml"))
    arguments = parser.parse_args()
    try:
        apply_recipe(arguments.recipe, arguments.params_file)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.params_file} now follows {arguments.recipe}; `git diff` shows what changed")


if __name__ == "__main__":
    main()

"""Merges recipes (overlays of `params.yaml`) into `params.yaml`: `python -m clip_core.recipe recipes/smoke.yaml`."""

import argparse
import copy
import io
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from ruamel.yaml import YAML

from clip_core.all_params import check_params
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import atomic_write
from clip_core.params_file import read_yaml
from clip_core.project import project_root

CHOOSES = ("source", "from", "name")  # keys whose value decides which other keys a section has
BESIDE = "with "  # starts the name of a section that holds only beside another recipe
BEHIND = "behind"  # the start of a recipe's name, without which this one means nothing


def merged(tree: dict, overlay: dict) -> dict:
    """`tree` with the values of `overlay`; a section that becomes another (see CHOOSES) is replaced whole."""
    result = copy.copy(tree)  # the nodes below may be shared through YAML anchors: they are replaced, never changed
    for key, value in overlay.items():
        old = tree.get(key)
        merges = isinstance(old, dict) and isinstance(value, dict) and not _becomes_another(old, value)
        result[key] = merged(old, value) if merges else value
    return result


def _becomes_another(old: dict, value: dict) -> bool:
    return any(key in value and value[key] != old.get(key) for key in CHOOSES)


def overlays(recipes: Sequence[Path]) -> Iterator[tuple[Path, dict]]:
    """What each recipe changes, with its sections `with NAME` for those recipes that are named beside it.

    Raises UserError for one that stands behind others, where none of these is named.
    """
    names = {recipe.stem for recipe in recipes}
    for recipe in recipes:
        overlay = read_yaml(recipe)
        before = overlay.pop(BEHIND, "")
        if not any(name.startswith(before) for name in names):
            raise UserError(
                f"{recipe}: changes a recipe {before}..., and none is named; name one before it, and the data first: "
                f'make recipe NAME="table {before}vit-b-16 {recipe.stem}"'
            )
        beside = {key: overlay.pop(key) for key in list(overlay) if key.startswith(BESIDE)}
        for key, section in beside.items():
            name = key.removeprefix(BESIDE)
            if not recipe.with_name(f"{name}.yaml").exists():
                raise UserError(f"{recipe}: section {key!r}: there is no recipe {name}.yaml beside it")
            if name in names:
                overlay = merged(overlay, section)
        yield recipe, overlay


def apply_recipes(recipes: Sequence[Path], params_file: Path) -> None:
    """Rewrites `params_file` with the recipes merged in, in this order; a wrong one raises and writes nothing."""
    tree = read_yaml(params_file)
    for recipe, overlay in overlays(recipes):
        tree = merged(tree, overlay)
        check_params(tree, recipe)
    yaml = YAML()
    yaml.width = 120
    text = io.StringIO()
    yaml.dump(tree, text)
    atomic_write(params_file, text.getvalue())


def _is_changed(params_file: Path) -> bool:
    """Whether it differs from what is committed; False where there is no git to ask."""
    try:
        command = ["git", "diff", "--quiet", "HEAD", "--", params_file.name]
        return subprocess.run(command, cwd=params_file.absolute().parent, capture_output=True).returncode == 1
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", type=Path, nargs="+", help="merged in this order")
    parser.add_argument("--params-file", type=Path, help="default: the project's")
    arguments = parser.parse_args()
    with told_to_the_user():
        params_file: Path = arguments.params_file or project_root() / "params.yaml"
        was_changed = _is_changed(params_file)
        apply_recipes(arguments.recipes, params_file)
    followed = ", ".join(map(str, arguments.recipes))
    print(f"{params_file} now follows {followed}; `git diff` shows what changed")
    if was_changed:
        print(
            f"note: {params_file} had been changed before, and keeps what these recipes do not name. To begin from the "
            f"committed one: git checkout {params_file}, and this command again"
        )


if __name__ == "__main__":
    main()

"""A git worktree in which the pipeline runs with other params, beside the workspace and without a change to it."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_core.config.section import hash_of
from clip_core.data.sources.fetch import FETCHED
from clip_core.errors import UserError
from clip_core.files import atomic_write
from clip_core.kept import KEPT
from clip_core.recipe import apply_recipes, merged
from flows.dag import WORKTREES, alone, link_missing, share
from flows.git import git

PARAMS = "params.yaml"


def make(root: Path, recipes: Sequence[str], settings: Mapping[str, object] | None = None) -> Path:
    """A worktree of `root` as it is now, also where that is not committed, with `recipes` merged into its params.

    Then `settings`, dotted key -> value, of a sweep.

    The same params and commit give the same one, so that a run that was killed is gone on with by the next. Raises
    UserError for a recipe that is wrong, and where git refuses.
    """
    params = with_recipes(root, recipes, settings)
    names = [*(Path(recipe).name for recipe in recipes), *(["sweep"] if settings else [])]
    name = "-".join([*names, hash_of(params, git(root, "rev-parse", "HEAD"))[:8]])
    worktree = root / WORKTREES / name
    git(root, "worktree", "prune")
    if not worktree.exists():
        git(root, "worktree", "add", "--quiet", "--detach", str(worktree), "HEAD")
    now = git(root, "stash", "create") or "HEAD"  # a commit of what is not committed; no file changes
    git(worktree, "restore", f"--source={now}", "--staged", "--worktree", "--", ".")
    atomic_write(worktree / PARAMS, params)
    for shared in (KEPT, FETCHED):  # what is known by the hash of its making is the same for both
        (root / shared).mkdir(parents=True, exist_ok=True)
        link_missing(root / shared, worktree / shared)
    share(root, worktree)
    return worktree


def with_recipes(root: Path, recipes: Sequence[str], settings: Mapping[str, object] | None = None) -> str:
    """The text of `root`/params.yaml with the recipes, then the settings merged in."""
    files = [root / "recipes" / f"{recipe}.yaml" for recipe in recipes]
    if missing := [file for file in files if not file.exists()]:
        raise UserError(f"{missing[0].relative_to(root)}: no such recipe; recipes/README.md lists them")
    with tempfile.TemporaryDirectory() as aside:
        params = Path(aside, PARAMS)
        params.write_bytes((root / PARAMS).read_bytes())
        overlay: dict = {}
        for key, value in (settings or {}).items():
            *above, last = key.split(".")
            setting: dict = {last: value}
            for part in reversed(above):
                setting = {part: setting}
            overlay = merged(overlay, setting)
        together = Path(aside, "settings.yaml")
        together.write_text(json.dumps(overlay), encoding="utf-8")
        apply_recipes([*files, together], params)
        return params.read_text(encoding="utf-8")


def remove(worktree: Path) -> None:
    """Removes it with all that it made; its experiment stays. Raises UserError while a DVC is at work there."""
    with alone(worktree):
        git(worktree.parent, "worktree", "remove", "--force", str(worktree.absolute()))

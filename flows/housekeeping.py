"""What nobody needs any more goes: `python -m flows.housekeeping [--days 14] [--yes]`.

Interrupted trainings that can not go on, results that nothing has used, releases that serve no more, and what DVC's
cache holds for no branch or tag. What is referenced stays, whatever its age.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from clip_core.all_params import load_params
from clip_core.errors import UserError, told_to_the_user
from clip_core.kept import KEPT
from clip_core.project import SERVING, project_root
from clip_core.serve import releases
from flows import worktree
from flows.dag import WORKTREES, collect_garbage

PARAMS_FILE = Path("params.yaml")


def main(days: float = 14, yes: bool = False) -> None:
    """Removes what nobody needs any more.

    Args:
        days: how long a training must lie still, or a result be of no use, before it goes.
        yes: without it nothing is done but told what would go.
    """
    os.chdir(project_root())
    for line in keep_house(days, yes):
        print(line, flush=True)


def keep_house(days: float, yes: bool) -> Iterator[str]:
    """Does it in the working directory's project, or with `yes` false only tells; a line for each thing that goes."""
    from clip_core.train.work_folder import interrupted, remove  # it reaches torch

    if days < 0:
        raise UserError(f"days: {days:g} lie in the future; 0 is the least")
    before = time.time() - days * 86400
    for folder in list(interrupted()):
        if last_written(folder) < before and not can_go_on(folder):
            yield f"training {folder}: other params, data, code or packages than now"
            try:
                if yes:
                    remove(folder)
            except UserError as error:
                yield f"  stays: {error}"
    for folder in sorted(path for path in WORKTREES.glob("*") if (path / "dvc.lock").stat().st_mtime < before):
        yield f"finetune {folder}: its experiment stays"
        try:
            if yes:
                worktree.remove(folder)
        except UserError as error:
            yield f"  stays: {error}"
    for folder in sorted(path for path in KEPT.glob("*/*") if path.is_dir() and path.stat().st_mtime < before):
        yield f"result {folder}: not used for {days:g} days"
        if yes:
            shutil.rmtree(folder)
    old = releases.unneeded(SERVING, load_params(PARAMS_FILE).releases.keep)
    yield from (f"release {release}: neither serves nor waits, and newer ones are there" for release in old)
    if yes and old:
        releases.remove(SERVING, old, "housekeeping")
    yield f"DVC's cache: {collect_garbage(Path(), dry=not yes, branches=True)} objects that no branch or tag names"
    yield "done" if yes else "nothing was removed: `--yes` does it"


def last_written(folder: Path) -> float:
    """In seconds since 1970."""
    return max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])


def can_go_on(folder: Path) -> bool:
    """Whether `dvc repro` would go on with the interrupted training."""
    from clip_core.train.fingerprint import differences_from_now
    from clip_core.train.work_folder import ABOUT, About

    try:
        about = About.model_validate_json((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):  # of an older version
        return False
    return not differences_from_now(about.decisive, PARAMS_FILE)


if __name__ == "__main__":
    import tyro

    with told_to_the_user():
        tyro.cli(main, prog="python -m flows.housekeeping")

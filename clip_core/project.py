"""Which project a typed command means: one place for where `params.yaml`, `serving/`, `.work/` and `.prefect/` are."""

import os
import shlex
import sys
from pathlib import Path

from clip_core.errors import UserError

MARKS = ("params.yaml", "dvc.yaml")
RELEASE = Path("models/release")  # what the stage `deploy` makes, in the project
SERVING = Path("serving")  # the releases


def project_root() -> Path:
    """The folder that $CLIP_PROJECT names, else the nearest with MARKS from the working directory upwards.

    It is "." where that is the working directory, so that messages name paths as one would type them. Stages need none
    of this: DVC runs them in their project.
    """
    here, named = Path.cwd(), os.environ.get("CLIP_PROJECT")
    for folder in [Path(named)] if named else [here, *here.parents]:
        if all((folder / mark).is_file() for mark in MARKS):
            return Path() if folder.absolute() == here else folder
    marks = " and ".join(MARKS)
    if named:
        raise UserError(f"CLIP_PROJECT={named}: no project there, whose folder has {marks}; set it right, or unset it")
    raise UserError(
        f"{here}: no project here or above, whose folder has {marks}. "
        f"Run `{shlex.join(['python', *sys.orig_argv[1:]])}` there, or here with CLIP_PROJECT=FOLDER before it, "
        "or name what it should use: --help lists the options"
    )


def serving_folder(named: Path | None) -> Path:
    """The folder of releases that the user named, or else the project's."""
    return named or project_root() / SERVING

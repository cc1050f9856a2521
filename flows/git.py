"""What git says: the registry's versions and the finetunes' worktrees are its."""

import os
import subprocess
from pathlib import Path

from clip_core.errors import UserError


def git(folder: Path, *arguments: str, **environment: str) -> str:
    """The output of git in `folder`; UserError with git's reason where it refuses, or is not there."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            encoding="utf-8",
        )
    except FileNotFoundError:
        raise UserError("no `git` on PATH; install it") from None
    if done.returncode:
        raise UserError(
            f"{folder.absolute()}: git {arguments[0]} says: {done.stderr.strip()}. Mend that (without a repository: "
            "git init, git add -A, git commit)"
        )
    return done.stdout.strip()

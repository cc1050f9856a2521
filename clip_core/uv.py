"""Calls uv, which brings packages from the registry that the user's configuration names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from clip_core.errors import UserError


def uv(*arguments: str) -> None:
    """Runs uv; raises UserError with what it said, and the remedy."""
    command = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if command is None:
        raise UserError("no `uv` beside this Python or on PATH: run `make setup`, or pip install uv")
    result = subprocess.run([command, *arguments], stderr=subprocess.PIPE, encoding="utf-8")
    if result.returncode:
        raise UserError(
            f"uv {' '.join(arguments[:2])} failed: {result.stderr.strip()[-2000:]}\n"
            "Remedy: check the connection to the package registry and the space on the disk, then run again; "
            "what is downloaded is kept."
        )

"""The command line of a stage, made from the signature of its `main`."""

import errno
import sys
from collections.abc import Callable

from clip_core.env import set_switches


def run(main: Callable[..., None]) -> None:
    """Runs `main` with arguments from the command line; a mistake of the user's becomes a message and exit code 1."""
    set_switches()
    import tyro

    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC and "run again" not in str(error)
        sys.exit(f"error: {error}" + ("; free disk space and run again" if full else ""))

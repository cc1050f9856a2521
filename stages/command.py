"""The command line of a stage, made from the signature of its `main`."""

from collections.abc import Callable

from clip_core.env import set_switches
from clip_core.errors import told_to_the_user


def run(main: Callable[..., None]) -> None:
    """Runs `main` with arguments from the command line; a mistake of the user's becomes a message and exit code 2."""
    set_switches()
    import tyro

    with told_to_the_user():
        tyro.cli(main)

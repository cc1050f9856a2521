"""The rollout and the rollback as flows: each step of `clip_core/serve/rollout.py` is a task on Prefect's page."""

if __name__ == "__main__":  # before Prefect is imported, which reads its settings on import
    from flows.server import ensure_server

    ensure_server("flows.rollout")

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from prefect import flow, task

from clip_core.errors import told_to_the_user
from clip_core.project import serving_folder
from clip_core.serve.rollout import roll_back, roll_out

T = TypeVar("T")


def as_task(name: str, step: Callable[[], T]) -> T:
    return task(name=name)(step)()


@flow
def rollout(release: str | None = None, serving: Path | None = None) -> str:
    """Makes a release public on the project's `make serve`, or leaves everything as it was and fails.

    Args:
        release: its id; by default the newest that was added.
        serving: the folder of releases; by default the project's.
    """
    return said(roll_out(serving_folder(serving), release, as_task))


@flow
def rollback(serving: Path | None = None) -> str:
    """Makes the release public again that was before the present one.

    Args:
        serving: the folder of releases; by default the project's.
    """
    return said(roll_back(serving_folder(serving), as_task))


def said(outcome: str) -> str:
    print(outcome, flush=True)
    return outcome


if __name__ == "__main__":
    import tyro

    with told_to_the_user():
        tyro.extras.subcommand_cli_from_dict({"forward": rollout.fn, "back": rollback.fn})

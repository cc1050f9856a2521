"""The rollout flow: a new release on a live Triton, asked golden queries before it serves and again after.

`python -m flows.rollout` rolls `serving/repository/` out to this project's running `make serve`.
"""

if __name__ == "__main__":  # before Prefect is imported, which reads its settings on import
    from flows.server import ensure_server

    ensure_server("flows.rollout")

from contextlib import closing
from pathlib import Path

import tyro
from prefect import flow, task

from clip_core.errors import told_to_the_user
from clip_core.serve import release
from clip_core.serve.client import read_state
from clip_core.serve.triton import connect


@task
def stage(triton: str, live: Path, repository: Path) -> int:
    """Loads the new release beside the old one; gives its number."""
    with closing(connect(triton)) as client:
        return release.stage(client, repository, live)


@task
def probe_candidate(triton: str, live: Path, number: int) -> dict[str, float]:
    """Asks the release the golden queries, by names that nobody else uses."""
    with closing(connect(triton)) as client:
        return release.probe_release(client, live, number)


@task
def publish(triton: str, live: Path, number: int) -> int:
    """Gives the public names to the release; gives the number of the one that had them."""
    with closing(connect(triton)) as client:
        return release.publish(client, live, number)


@task
def probe_public(triton: str, live: Path) -> dict[str, float]:
    """Asks the golden queries by the public names."""
    with closing(connect(triton)) as client:
        return release.probe_public(client, live)


@task
def roll_back(triton: str, live: Path, number: int) -> None:
    """Gives the public names back to an earlier release, which is still loaded."""
    with closing(connect(triton)) as client:
        release.publish(client, live, number)


@task
def retire(triton: str, live: Path, number: int) -> None:
    """Unloads a release that no longer serves."""
    with closing(connect(triton)) as client:
        release.retire(client, live, number)


@flow
def rollout(
    repository: Path = Path("serving/repository"), triton: str | None = None, live: Path | None = None
) -> dict[str, float]:
    """Makes the release in `repository` the one that serves, or leaves everything as it was and fails.

    Args:
        repository: the model repository of the new release.
        triton: host:port of the server's gRPC; by default that of this project's `make serve`.
        live: the model repository that the server has open, as this machine sees it; default likewise.
    """
    if triton is None or live is None:
        state = read_state()
        triton, live = state["triton"], Path(state["live"])
    with release.one_rollout_at_a_time(live):
        number = stage(triton, live, repository)
        before = release.published(live)
        try:
            probe_candidate(triton, live, number)
            publish(triton, live, number)
            differences = probe_public(triton, live)
        except BaseException:  # whatever it was, also a cancelled run: the old release serves on
            if release.published(live) == number:
                roll_back(triton, live, before)
            retire(triton, live, number)
            raise
        retire(triton, live, before)
    print(f"release {number} serves; golden queries differ from torch by {differences}", flush=True)
    return differences


def main(repository: Path = Path("serving/repository"), triton: str | None = None, live: Path | None = None) -> None:
    rollout(repository, triton, live)


if __name__ == "__main__":
    with told_to_the_user():
        tyro.cli(main)

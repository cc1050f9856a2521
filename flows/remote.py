"""DVC's remotes, for the flows and by hand: `python -m flows.remote fetch NAME`, `restore NAME STAGE`, `push NAME`.

DVC's own `push --run-cache` leaves out the metrics that git keeps, without which another machine repeats their stages,
and its `fetch --run-cache` copies every entry each time.
"""

import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.errors import UserError, told_to_the_user

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB
    from dvc_data.hashfile.hash_info import HashInfo


def fetch(name: str) -> None:
    """Gets what `name` knows of which inputs made which outs; the outs themselves come when a stage needs them."""
    with opened(name) as (repo, there):
        repo.stage_cache.transfer(there, repo.cache.legacy, force=False)


def restore(name: str, stage: str) -> None:
    """Gets the outs of `stage`, where another machine has made them of the same inputs, into DVC's cache."""
    with opened(name) as (repo, _):
        wanted = repo.stage.load_one("dvc.yaml", stage)
        if not all(dependency.exists for dependency in wanted.deps):
            return  # `dvc repro` says which
        wanted.save_deps()  # their hashes of now, in this object alone
        if made := repo.stage_cache._load(wanted):
            repo.cloud.pull(objects(repo, [made], name), remote=name)


def push(name: str) -> None:
    """Puts what `dvc.lock` names, and what made it, into `name`; raises UserError where that is not complete."""
    from dvc.dvcfile import Lockfile

    with opened(name) as (repo, there):
        made = Lockfile(repo, "dvc.lock").load().get("stages", {}).values()
        if failed := repo.cloud.push(objects(repo, made, name), remote=name).failed:
            raise UserError(f"remote {name}: {len(failed)} objects could not be written to {there.path}")
        repo.stage_cache.transfer(repo.cache.legacy, there, force=False)  # last: it promises what lies there


@contextmanager
def opened(name: str) -> Generator[tuple["Repo", "HashFileDB"]]:
    """The working directory's repository, in which no other DVC begins, and its remote `name`.

    Raises UserError where that is a folder that is not there: DVC would take it for an empty one, and make it.
    """
    from dvc.fs import LocalFileSystem
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo, repo.lock:
        there = repo.cloud.get_remote_odb(name, hash_name="md5-dos2unix")  # under which DVC files the run cache
        if isinstance(there.fs, LocalFileSystem) and not Path(there.path).is_dir():
            raise UserError(f"remote {name}: {there.path} is not there; mount it, or make it: mkdir {there.path}")
        yield repo, there


def objects(repo: "Repo", made: Iterable[dict], name: str) -> set["HashInfo"]:
    """The hashes of all outs of stages, each as `dvc.lock` or the run cache has it, and also of outs that git keeps."""
    stages = [repo.stage_cache._create_stage(one) for one in made if "outs" in one]
    used = [stage.get_used_objs(remote=name, force=True).values() for stage in stages]
    return set().union(*chain.from_iterable(used))


if __name__ == "__main__":
    from dvc.exceptions import DvcException

    verbs = {"fetch": fetch, "restore": restore, "push": push}
    if not sys.argv[2:] or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    with told_to_the_user(DvcException):
        verbs[sys.argv[1]](*sys.argv[2:])

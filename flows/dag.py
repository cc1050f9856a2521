"""DVC's own graph of the stages in `dvc.yaml`, upstream first."""

import logging
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.errors import UserError
from clip_core.guard import start, stop
from flows.healing import clear_stale_locks

if TYPE_CHECKING:
    from dvc.repo import Repo

SECRETS = ("CLIP_WEBHOOK", "CLIP_KEY")  # the variables of flows.alerts and of the gateway's client
WORKTREES = Path(".work/finetune")  # a folder each, see flows/worktree.py


@dataclass(frozen=True)
class Stage:
    """A stage of `dvc.yaml`, as DVC sees it."""

    name: str  # with the item of a `foreach` or `matrix`: evaluate@test
    needs: tuple[str, ...]  # the stages whose outputs it reads
    metrics: tuple[Path, ...]  # its metrics files
    is_dirty: bool  # something it reads or writes has changed since it last ran


def stages_upstream_first(root: Path) -> list[Stage]:
    """The stages of `root`/dvc.yaml, each after those it needs; pipelines in other folders are left out."""
    import networkx as nx
    from dvc.repo import Repo
    from dvc.repo.index import Index

    file = str(root.resolve() / "dvc.yaml")
    with Repo(str(root), _wait_for_lock=True) as repo:
        graph = Index.from_file(repo, file).graph  # an edge goes from a stage to what it needs
        order = list(nx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.name))
        dirty = repo.status(targets=[file])
        return [
            Stage(
                name=stage.name,
                needs=tuple(sorted(upstream.name for upstream in graph.successors(stage))),
                metrics=tuple(root / out.def_path for out in stage.outs if out.metric),
                is_dirty=stage.addressing in dirty,  # its name, seen from the working directory
            )
            for stage in order
        ]


def has_changed(root: Path, stage: str, path: Path) -> bool:
    """Whether `path`, a dependency of `stage`, has other bytes than when that last ran."""
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        dependencies = repo.stage.load_one(path=str(root.resolve() / "dvc.yaml"), name=stage).deps
        return any(dependency.workspace_status() for dependency in dependencies if Path(dependency.def_path) == path)


def share(root: Path, worktree: Path) -> None:
    """Gives `worktree`, a git worktree of `root`, DVC's cache and the outs that it has, and what stages read beside.

    That are links to what lies in `root` and is not git's: data and weights of the user's.
    """
    from dvc.repo import Repo
    from dvc.repo.index import Index

    with Repo(str(root)) as repo:
        cache = f"[cache]\n    dir = {repo.cache.local_cache_dir}\n"
    (worktree / ".dvc" / "config.local").write_text(cache, encoding="utf-8")
    file = str(worktree.resolve() / "dvc.yaml")
    with Repo(str(worktree)) as repo:
        index = Index.from_file(repo, file)
        outs = [Path(out.fs_path) for out in index.outs]
        for path in {Path(dependency.fs_path) for dependency in index.deps}:
            if path.is_relative_to(repo.root_dir) and not any(path.is_relative_to(out) for out in outs):
                link_missing(root / path.relative_to(repo.root_dir), path)
        repo.checkout(targets=[file], force=True, allow_missing=True)


def link_missing(source: Path, target: Path) -> None:
    """Has `target` hold links to what only `source` has; file by file within a folder, where DVC follows no others."""
    only = [source]
    if target.is_dir():
        only = [path for path in source.rglob("*") if path.is_symlink() or path.is_file()]
    for path in only:
        link = target / path.relative_to(source)
        if path.exists() and not os.path.lexists(link) and path.parent.name != "__pycache__":
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def save_experiment(name: str) -> None:
    """Keeps params, dvc.lock, metrics and code of the working directory as DVC's experiment of this name."""
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        repo.experiments.save(name=name, force=True)


def environment() -> dict[str, str]:
    """For DVC: a stage's `python` is the one that runs this flow, whatever PATH and the user's shell say.

    What is Prefect's stays here, and so do SECRETS: a stage has no use for them, and what it sees it may write down.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    kept_here = {name for name in os.environ if name.startswith("PREFECT_") or name in SECRETS}
    others = {name: value for name, value in os.environ.items() if name not in kept_here}
    return {**others, "PATH": path, "SHELL": "/bin/sh"}


def bring_up_to_date(stages: Sequence[str]) -> None:
    """Has DVC do so with each of the stages in this order, and with none of those that they need.

    Raises UserError where one fails; what it said stands before.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *stages]
    process = start(command, env=environment())
    try:
        if code := process.wait():
            raise UserError(f"a stage failed (DVC's exit code {code}); mend what it names above and run this again")
    finally:
        stop(process)


def collect_garbage(root: Path, dry: bool, branches: bool) -> int:
    """Removes from DVC's cache what no worktree and, where asked, no branch, tag or experiment names; how many.

    Counts alone when `dry`. Of a folder whose list is not in the cache, as where another machine made a branch's
    results, nothing there is known to be needed. Raises UserError while a DVC is at work.
    """
    from dvc_data.hashfile.gc import gc

    logging.getLogger(gc.__module__).setLevel(logging.WARNING)  # it says "Removing" also when it only counts
    with ExitStack() as stack:
        repo = stack.enter_context(alone(root))
        used = set().union(
            *repo.used_objs(all_branches=branches, all_tags=branches, all_experiments=branches, force=True).values(),
            *(
                objects
                for worktree in (root / WORKTREES).glob("*")
                for objects in stack.enter_context(alone(worktree)).used_objs(force=True).values()
            ),
        )
        caches = {id(cache): cache for _, cache in repo.cache.by_scheme() if cache}
        return sum(gc(cache, used, dry=dry) or 0 for cache in caches.values())


def locked(root: Path, stage: str) -> object:
    """What `root`/dvc.lock has on `stage`, None where that is nothing; read while no DVC writes it."""
    from dvc.dvcfile import Lockfile
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        return Lockfile(repo, str(root.resolve() / "dvc.lock")).load().get("stages", {}).get(stage)


def remove_outs(root: Path, but: Path) -> tuple[list[Path], list[Path]]:
    """Removes what stages made and the cache keeps, but for what is in `but`; gives what it removed and what it left.

    That is left which the cache does not have as it is. Raises UserError, before all else, while a DVC is at work.
    """
    removed, left = [], []
    with alone(root) as repo:
        for out in repo.index.outs:
            path = Path(out.fs_path)
            if not out.use_cache or not out.stage.cmd or not out.exists or path.is_relative_to(but):
                continue  # without a command it is what the user gave to DVC
            if out.status():
                left.append(path)
                continue
            out.remove()
            removed.append(path)
            for folder in path.parents:
                if folder == root or any(folder.iterdir()):
                    break
                folder.rmdir()
    return removed, left


@contextmanager
def alone(root: Path) -> Generator["Repo"]:
    """The repository, in which no other DVC begins; raises UserError that names the one that is at work."""
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.rwlock import _edit_rwlock

    clear_stale_locks(root)
    with Repo(str(root)) as repo:
        try:
            repo.lock.lock()
        except LockError:
            raise _busy(Path(repo.tmp_dir, "lock").read_text(encoding="utf-8").strip(), "dvc") from None
        try:  # it is free also while a stage's command runs: that stands in the other lock
            with _edit_rwlock(repo.tmp_dir, repo.fs, repo.config["core"].get("hardlink_lock", False)) as lock:
                for holder in [*lock["write"].values(), *chain(*lock["read"].values())]:
                    raise _busy(holder["pid"], holder["cmd"])
            yield repo
        finally:
            repo.lock.unlock()


def _busy(pid: str, command: str) -> UserError:
    return UserError(f"process {pid} ({command}) is at work in this project. Wait for its end, or stop it: kill {pid}")

"""DVC's own graph of the stages in `dvc.yaml`, upstream first."""

from dataclasses import dataclass
from pathlib import Path


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


def locked(root: Path, stage: str) -> object:
    """What `root`/dvc.lock has on `stage`, None where that is nothing; read while no DVC writes it."""
    from dvc.dvcfile import Lockfile
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        return Lockfile(repo, str(root.resolve() / "dvc.lock")).load().get("stages", {}).get(stage)

"""The graph that the flow walks is DVC's own, of the project's pipeline and no other."""

import shutil
from pathlib import Path

from clip_core.params_file import read_yaml
from flows.dag import stages_upstream_first
from tests.conftest import ROOT, run_in
from tests.toy_pipeline import new_toy

NEW_STAGE = """
  blurb:
    cmd: python toy.py blurb
    deps: [toy.py, words-short.out]
    outs: [blurb.out]
"""


def bare_copy(folder: Path) -> Path:
    """The project's pipeline without the project."""
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder)
    return folder


def needs_by_hand(dvc_yaml: dict) -> dict[str, set[str]]:
    """Stage -> the stages whose outputs it reads, from the text of dvc.yaml and nothing else."""
    stages = {}
    for name, stage in dvc_yaml["stages"].items():
        for item in stage.get("foreach", [None]):
            text = {"deps": [], "outs": [], "metrics": [], "plots": []} | stage.get("do", stage)
            paths = [
                [
                    str(next(iter(entry)) if isinstance(entry, dict) else entry).replace("${item}", str(item))
                    for entry in part
                ]
                for part in (text["deps"], [*text["outs"], *text["metrics"], *text["plots"]])
            ]
            stages[f"{name}@{item}" if item else name] = paths
    return {
        name: {
            other
            for other, (_, outs) in stages.items()
            if any(dep == out or dep.startswith(f"{out}/") for dep in deps for out in outs)
        }
        for name, (deps, _) in stages.items()
    }


def test_the_graph_is_that_of_dvc_yaml_and_every_stage_comes_after_what_it_needs(tmp_path: Path) -> None:
    stages = stages_upstream_first(bare_copy(tmp_path))
    assert {stage.name: set(stage.needs) for stage in stages} == needs_by_hand(read_yaml(ROOT / "dvc.yaml"))
    seen: set[str] = set()
    for stage in stages:
        assert set(stage.needs) <= seen, stage.name
        seen.add(stage.name)


def test_the_metrics_files_are_those_of_dvc_yaml(tmp_path: Path) -> None:
    metrics = {
        file.relative_to(tmp_path) for stage in stages_upstream_first(bare_copy(tmp_path)) for file in stage.metrics
    }
    assert Path("reports/test/metrics.json") in metrics
    assert Path("reports/metrics.json") in metrics


def test_a_new_stage_appears_by_itself(tmp_path: Path) -> None:
    toy = new_toy(tmp_path)
    with (toy / "dvc.yaml").open("a") as file:
        file.write(NEW_STAGE)
    found = {stage.name: stage.needs for stage in stages_upstream_first(toy)}
    assert found["blurb"] == ("words@short",)
    assert found["book"] == ("words@long", "words@short")


def test_a_pipeline_in_another_folder_is_left_out(tmp_path: Path) -> None:
    toy = new_toy(tmp_path)
    (toy / "recipes").mkdir()
    (toy / "recipes" / "dvc.yaml").write_text(
        "stages: {sequel: {cmd: 'true', deps: [../book.out], outs: [sequel.out]}}"
    )
    assert [stage.name for stage in stages_upstream_first(toy)] == ["letters", "words@long", "words@short", "book"]


def test_a_stage_is_dirty_when_what_it_reads_has_changed(tmp_path: Path) -> None:
    toy = new_toy(tmp_path)
    assert all(stage.is_dirty for stage in stages_upstream_first(toy))
    run_in(toy, "dvc", "repro")
    assert not any(stage.is_dirty for stage in stages_upstream_first(toy))
    (toy / "words-long.in").write_text("new")
    assert [stage.name for stage in stages_upstream_first(toy) if stage.is_dirty] == ["words@long"]

"""The graph that the flow walks is DVC's own, of the project's pipeline and no other."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip_core.params_file import read_yaml
from flows.dag import clear_stale_locks, stages_upstream_first
from tests.conftest import ENVIRONMENT, ROOT, run_in
from tests.toy_pipeline import new_toy, new_toy_of_one_stage

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


@pytest.fixture
def stranger() -> Iterator[int]:
    """The number of a process that has nothing to do with DVC."""
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_lock_whose_process_number_belongs_to_something_else_by_now_is_cleared(tmp_path: Path, stranger: int) -> None:
    toy = new_toy_of_one_stage(tmp_path)
    holder = {"pid": stranger, "cmd": "/venv/lib/dvc/__main__.py --wait-for-lock repro --single-item letters"}
    lock = toy / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir()
    lock.write_text(
        json.dumps({"write": {f"{toy}/letters.out": holder}, "read": {f"{toy}/toy.py": [holder], "/elsewhere": []}})
    )
    assert "is busy" in run_in(toy, "dvc", "repro", check=False).stdout
    first, second = clear_stale_locks(toy)
    assert first == f"{toy}/letters.out: process {stranger} ({holder['cmd']}) is gone"
    assert second.startswith(f"{toy}/toy.py: ")
    run_in(toy, "dvc", "repro")


@pytest.mark.parametrize("dvc", [("dvc",), (sys.executable, "-m", "dvc")])
def test_a_lock_held_by_a_living_dvc_is_left_alone(dvc: tuple[str, ...], tmp_path: Path) -> None:
    toy = new_toy_of_one_stage(tmp_path)
    (toy / "letters.in").write_text("hang")
    process = subprocess.Popen(
        [*dvc, "repro", "letters"], cwd=toy, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not (toy / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        lock = toy / ".dvc" / "tmp" / "rwlock"
        before = json.loads(lock.read_text())
        assert before["write"][f"{toy}/letters.out"]["pid"] == process.pid
        assert clear_stale_locks(toy) == []
        assert json.loads(lock.read_text()) == before
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert all(str(process.pid) in line for line in clear_stale_locks(toy))  # a dead one's too

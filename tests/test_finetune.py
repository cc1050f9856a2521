"""A finetune on a real Prefect server: the pipeline with other params, beside a workspace that stays as it is."""

import json
import os
import signal
import time
from contextlib import chdir
from pathlib import Path

import pytest

from clip_core.params_file import read_yaml
from flows import worktree
from flows.dag import WORKTREES, collect_garbage, save_experiment
from flows.housekeeping import keep_house
from tests.conftest import commit_all, run_in
from tests.prefect_api import ask, flow_runs, until
from tests.toy_pipeline import new_toy_of_one_stage, outcomes, run_flow, runs, start_flow


def finetune(*recipes: str) -> tuple[str, str]:
    """The arguments of python that run the flow."""
    return "-c", (
        "import asyncio; from flows.finetune import finetune; "
        f"state = asyncio.run(finetune({list(recipes)}, return_state=True)); print(state.name, state.message)"
    )


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A repository whose stage has run; it reads the seed, and a folder in which git knows one of three files."""
    toy = new_toy_of_one_stage(tmp_path)
    pipeline = (
        (toy / "dvc.yaml")
        .read_text()
        .replace("toy.py letters", "toy.py letters && grep -m1 seed params.yaml >> letters.out")
    )
    (toy / "dvc.yaml").write_text(pipeline.replace("letters.in]", "letters.in, brought]\n    params: [seed]"))
    with (toy / ".gitignore").open("a") as file:
        file.write("/brought/*\n!/brought/README\n*.out\n")
    for name in ("README", "weights", "more/weights"):
        (toy / "brought" / name).parent.mkdir(exist_ok=True)
        (toy / "brought" / name).write_text(name)
    (toy / "recipes").mkdir()
    (toy / "recipes" / "other.yaml").write_text("seed: 7\n")
    run_in(toy, "dvc", "repro")
    commit_all(toy)
    runs(toy)
    return toy


def state_of(project: Path) -> dict[str, bytes]:
    """Every file of the workspace with its bytes."""
    left_out = (".git", ".dvc", ".work", ".prefect")
    files = [path for path in project.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files if path.relative_to(project).parts[0] not in left_out} | {
        "git": run_in(project, "git", "status", "--porcelain").stdout.encode()
    }


def test_it_runs_beside_the_workspace_as_that_is_and_its_experiment_can_be_applied(toy: Path, api: str) -> None:
    (toy / "letters.in").write_text(" not committed")
    run_in(toy, "dvc", "repro")
    before = state_of(toy)
    code, output = run_flow(toy, api, *finetune("other"))
    assert code == 0, output
    assert outcomes(output) == {"letters": "Ran"}
    assert state_of(toy) == before
    (folder,) = (toy / WORKTREES).iterdir()
    assert f"Completed experiment {folder.name}; its weights: {WORKTREES / folder.name / 'models/stage2'}" in output
    assert read_yaml(folder / "params.yaml")["seed"] == 7
    assert (folder / "letters.in").read_text() == " not committed"
    (artifact,) = ask(api, "artifacts/filter", artifacts={"key": {"any_": ["finetune"]}})
    assert "+seed: 7" in artifact["data"] and f"dvc exp apply {folder.name}" in artifact["data"]

    run_in(toy, "dvc", "exp", "apply", folder.name)
    assert read_yaml(toy / "params.yaml")["seed"] == 7
    assert (toy / "letters.out").read_text() == "lettersnot committedseed: 7\n"
    assert "up to date" in run_in(toy, "dvc", "status").stdout


def test_what_an_experiment_or_a_worktree_has_is_no_garbage(toy: Path) -> None:
    folder = worktree.make(toy, ["other"])
    run_in(folder, "dvc", "repro", "--force")
    with chdir(folder):
        save_experiment(folder.name)
    (folder / "letters.in").write_text("later")
    run_in(folder, "dvc", "repro")
    with chdir(toy):
        assert collect_garbage(toy, dry=True, branches=True) == 0
        worktree.remove(folder)
        assert collect_garbage(toy, dry=False, branches=True) == 1  # what was made later
        run_in(toy, "dvc", "exp", "apply", folder.name)


def test_a_recipe_that_is_not_there_is_refused_by_name_and_nothing_is_made(toy: Path, api: str) -> None:
    _, output = run_flow(toy, api, *finetune("other", "nothing"))
    assert "Refused recipes/nothing.yaml: no such recipe; recipes/README.md lists them" in output
    assert not (toy / WORKTREES).exists()
    assert flow_runs(api)[0]["state_type"] == "FAILED"


def test_housekeeping_removes_the_worktree_of_an_old_finetune_but_not_of_one_that_runs(toy: Path) -> None:
    folder = worktree.make(toy, ["other"])
    os.utime(folder / "dvc.lock", times=(then := time.time() - 20 * 86400, then))
    lock = folder / ".dvc" / "tmp" / "rwlock"
    holder = {"pid": os.getpid(), "cmd": " ".join(Path("/proc/self/cmdline").read_text("utf-8").split("\0")[1:-1])}
    lock.write_text(json.dumps({"write": {f"{folder}/letters.out": holder}, "read": {}}))
    with chdir(toy):
        told = keep_house(days=14, yes=True)
        assert next(told).startswith(f"finetune {folder.relative_to(toy)}")
        assert f"process {os.getpid()}" in next(told) and folder.exists()
        lock.unlink()
        list(keep_house(days=14, yes=True))
    assert not folder.exists()
    assert run_in(toy, "git", "worktree", "list").stdout.count("\n") == 1


@pytest.mark.slow
def test_one_that_was_killed_is_gone_on_with_where_it_was(toy: Path, api: str) -> None:
    (toy / "letters.in").write_text("wait")
    process = start_flow(toy, api, *finetune("other"))
    (pid,) = until(lambda: list((toy / WORKTREES).glob("*/pid")))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until(lambda: not Path("/proc", pid.read_text()).exists())
    (pid.parent / "go").touch()  # as a checkpoint, it is not git's
    code, output = run_flow(toy, api, *finetune("other"))
    assert code == 0 and "Completed experiment" in output, output
    assert runs(pid.parent) == ["letters", "letters"] and len(list((toy / WORKTREES).iterdir())) == 1
    code, output = run_flow(toy, api, *finetune("other"))  # the same once more
    assert code == 0 and outcomes(output) == {"letters": "Cached"}, output

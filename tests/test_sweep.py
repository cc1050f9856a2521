"""A sweep on a real Prefect server: each combination is an experiment, and the best one is applied by a command."""

import json
from pathlib import Path

import pytest

from clip_core.errors import UserError
from clip_core.params_file import read_yaml
from flows.sweep import check_metric, combinations
from tests.conftest import commit_all, run_in
from tests.prefect_api import ask
from tests.toy_pipeline import new_toy, outcomes, run_flow, runs

DVC_YAML = """
stages:
  letters:
    cmd: python score.py
    deps: [score.py]
    params: [seed, releases.keep]
    outs: [letters.out]
    metrics:
      - reports/letters.json: {cache: false}
"""
SCORE = """
import json
from pathlib import Path
from ruamel.yaml import YAML

params = YAML(typ="safe").load(Path("params.yaml"))
with Path("runs.txt").open("a") as runs:
    runs.write("letters\\n")
value = 10 * params["seed"] - params["releases"]["keep"]
Path("letters.out").write_text(f"weights of {value}")
Path("reports").mkdir(exist_ok=True)
Path("reports/letters.json").write_text(json.dumps({"all": {"recall": {"value": value, "low": 0, "high": 99}}}))
"""
GRID = ("--grid", "seed=1,2", "releases.keep=4", "--metric", "reports/letters.json:all.recall")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    toy = new_toy(tmp_path)
    (toy / "dvc.yaml").write_text(DVC_YAML)
    (toy / "score.py").write_text(SCORE)
    (toy / "reports").mkdir()
    (toy / "reports" / "letters.json").write_text("{}")  # git knows it, as it does the project's
    with (toy / ".gitignore").open("a") as file:
        file.write("*.out\n")
    commit_all(toy)
    return toy


def test_the_best_of_a_sweep_is_applied_by_its_command_and_what_was_made_is_not_made_again(toy: Path, api: str) -> None:
    code, output = run_flow(toy, api, "-m", "flows.sweep", *GRID)
    assert code == 0, output
    rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    assert [row[:3] for row in rows if row[0] != "---"] == [
        ["seed", "releases.keep", "reports/letters.json:all.recall"],
        ["2", "4", "16"],
        ["1", "4", "6"],
    ]
    best, other = (row[3] for row in rows[-2:])
    assert output.rstrip().endswith(f"the best is {best}: dvc exp apply {best}")
    assert ask(api, "artifacts/filter", artifacts={"key": {"any_": ["sweep"]}})[0]["data"] in output
    assert not (toy / "letters.out").exists() and not run_in(toy, "git", "diff").stdout
    shown = json.loads(run_in(toy, "dvc", "exp", "show", "--json").stdout)
    assert {one["name"] for baseline in shown for one in baseline["experiments"] or []} == {best, other}

    code, output = run_flow(toy, api, "-m", "flows.sweep", *GRID, "--apply")
    assert code == 0, output
    assert outcomes(output) == {"letters": "Unchanged"}
    assert [runs(folder) for folder in (toy / ".work" / "finetune").iterdir()] == [["letters"], ["letters"]]
    assert (toy / "letters.out").read_text() == "weights of 16"
    assert read_yaml(toy / "params.yaml")["seed"] == 2 and read_yaml(toy / "params.yaml")["releases"]["keep"] == 4
    assert "up to date" in run_in(toy, "dvc", "status").stdout


def test_a_grid_is_each_value_with_each_and_what_is_none_is_refused_before_anything_runs(toy: Path, api: str) -> None:
    assert combinations(["seed=1,2", "stage2.optimizer.learning_rate=1e-4,3e-4"]) == [
        {"seed": seed, "stage2.optimizer.learning_rate": rate} for seed in (1, 2) for rate in (0.0001, 0.0003)
    ]
    for wrong in ("seed", "seed=", "=1", "seed=[1"):
        with pytest.raises(UserError, match="wanted is KEY=VALUE,VALUE"):
            combinations([wrong])
    with pytest.raises(UserError, match=r"FILE is one of: reports/letters\.json"):
        check_metric(toy, "reports/other.json:all.recall")
    code, output = run_flow(toy, api, "-m", "flows.sweep", "--grid", "seed=1", "sed=2", *GRID[-2:])
    assert code == 2 and "error: " in output and "sed: Extra inputs" in output
    assert not (toy / ".work" / "finetune").exists()

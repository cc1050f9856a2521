"""`dvc repro` runs what changed, and nothing else."""

import re
import resource
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import run_in


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def edit(project: Path, section: str, key: str, value: object) -> None:
    yaml = YAML()
    tree = yaml.load(project / "params.yaml")
    assert tree[section][key] != value
    tree[section][key] = value
    yaml.dump(tree, project / "params.yaml")


def processor_seconds() -> float:
    """What the processes that this one has waited for have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_run_again_it_does_nothing_and_takes_under_ten_processor_seconds(project_copy: Path) -> None:
    before = processor_seconds()
    # -o: the environment is the one that this test runs in
    output = run_in(project_copy, "make", "-o", ".venv/ready", "run").stdout
    assert stages_run(output) == set()
    assert "The report:   reports/report.html" in output
    assert processor_seconds() - before < 10  # as on a clock, where nothing else runs: two or three


@pytest.mark.parametrize(
    ("section", "key", "value", "reruns"),
    [
        # the packed bytes come out the same, so what follows does not run
        ("pack", "shard_mib", 255, {"check", "pack"}),
        # other intervals: the gate looks again, finds the same model, and the ONNX files come out the same
        pytest.param(
            *("evaluate", "num_bootstrap", 101),
            {"check", "evaluate@valid", "evaluate@test", "export", "deploy", "report"},
            marks=pytest.mark.slow,
        ),
        pytest.param("deploy", "num_timed", 7, {"check", "deploy", "report"}, marks=pytest.mark.slow),
    ],
)
def test_an_edited_value_reruns_only_what_depends_on_it(
    section: str, key: str, value: object, reruns: set[str], project_copy: Path
) -> None:
    edit(project_copy, section, key, value)
    assert stages_run(run_in(project_copy, "dvc", "repro").stdout) == reruns


@pytest.mark.slow
def test_another_file_in_the_folder_of_what_is_brought_reruns_who_names_it_and_nothing_that_comes_out_the_same(
    project_copy: Path,
) -> None:
    (project_copy / "pretrained" / "another.safetensors").write_bytes(b"weights")
    assert stages_run(run_in(project_copy, "dvc", "repro").stdout) == {"curate", "init"}


def test_a_misspelt_key_stops_the_pipeline_before_any_stage_works(project_copy: Path) -> None:
    yaml = YAML()
    tree = yaml.load(project_copy / "params.yaml")
    tree["pack"]["shard_mb"] = 12
    tree["stage2"]["schedule"]["peak_lr"] = -1.0
    yaml.dump(tree, project_copy / "params.yaml")
    result = run_in(project_copy, "dvc", "repro", check=False)
    assert result.returncode != 0
    assert "pack.shard_mb" in result.stdout
    assert "stage2.schedule.peak_lr" in result.stdout
    assert stages_run(result.stdout) == {"check"}
    assert (project_copy / "data" / "packed" / "train").exists()  # what was there stays


@pytest.mark.parametrize(
    ("target", "section", "key"), [("run", "data", "path"), ("run", "init", "path"), ("ablation", "ablation", "seeds")]
)
def test_a_misspelt_key_that_dvc_needs_itself_is_named_with_all_others(
    target: str, section: str, key: str, project_copy: Path
) -> None:
    yaml = YAML()
    tree = yaml.load(project_copy / "params.yaml")
    tree[section][f"{key}z"] = tree[section].pop(key)
    tree["stage2"]["schedule"]["peak_lr"] = -1.0
    yaml.dump(tree, project_copy / "params.yaml")
    result = run_in(project_copy, "make", "-o", ".venv/ready", target, check=False)
    assert result.returncode != 0
    assert f"{section}.{key}z" in result.stdout
    assert "stage2.schedule.peak_lr" in result.stdout
    assert stages_run(result.stdout) == set()


def test_clean_removes_what_the_pipeline_made_and_no_more(project_copy: Path) -> None:
    (project_copy / ".venv").symlink_to(sys.prefix)
    theirs = {"models/mine/model.pt", "serving/live/model.onnx", ".work/stage1/abc/checkpoint"}
    for name in theirs:
        (project_copy / name).parent.mkdir(parents=True, exist_ok=True)
        (project_copy / name).write_bytes(b"weights")
    run_in(project_copy, "make", "clean")
    left = {str(file.relative_to(project_copy)) for file in project_copy.rglob("*") if file.is_file()}
    made = {name for name in left if name.startswith(("data/", "models/", "reports/"))}
    # git tracks these figures
    tracked = {f"reports/{name}.json" for name in ("metrics", "valid/metrics", "test/metrics", "text_start")}
    tracked |= {f"reports/{split}/calibration.json" for split in ("valid", "test")}
    assert made == {"models/mine/model.pt", *tracked}
    assert theirs <= left
    assert not (project_copy / "data").exists()
    assert (project_copy / ".venv" / "bin").exists()
    assert (project_copy / ".cache" / "emoji").exists()

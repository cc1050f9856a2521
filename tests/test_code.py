"""What a stage reaches decides whether it runs again: code, templates and package versions, comments never."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from clip_core.code import PACKAGES, installed_version, locked_versions, reached_by
from stages.check import modules_of_stages
from stages.command import CHECKED
from tests.conftest import ROOT, run_in

TRAININGS = {"init", "stage1", "stage2"}
ALL = {module.partition(".")[2] for module in modules_of_stages()}


def replace(path: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(project: Path) -> None:
        text = (project / path).read_text(encoding="utf-8")
        assert old in text
        (project / path).write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


def lock_another_timm(project: Path) -> None:
    lock = project / "requirements.lock"
    text, count = re.subn(r"(?m)^timm==\S+", "timm==0.0.1", lock.read_text(encoding="utf-8"))
    assert count == 1
    lock.write_text(text, encoding="utf-8")


EDITS = {
    "a constant in the arithmetic of the schedule": (
        replace("clip_core/train/schedule.py", "MAX_WARMUP = 0.25", "MAX_WARMUP = 0.24"),
        TRAININGS | {"text_start", "ablation_start", "ablation_arm"},
    ),
    "a comment, a docstring and the layout": (
        replace("clip_core/train/loss.py", '"""Symmetric InfoNCE', '# why\n\n    """Another word for InfoNCE'),
        set(),
    ),
    "a version in the lock": (lock_another_timm, {m for m in ALL if "timm" in reached_by(f"stages.{m}").versions}),
    "a template": (
        replace("clip_core/serve/templates/text_core/config.pbtxt", "\n", "\n# another\n"),
        {"deploy"},
    ),
    "a pin of Triton's": (
        replace("clip_core/serve/triton.lock", "numpy==1.26.4", "numpy==1.26.3"),
        {"deploy"},
    ),
    "a stage's own file": (
        replace("stages/pack.py", "/ 2**20", "/ 2**20 / 1"),
        {"pack"},
    ),
    "a module that no stage reaches": (
        replace("clip_core/serve/gateway.py", "import argparse\n", "import argparse\nUNUSED = 1\n"),
        set(),
    ),
    "the limits of a section": (
        replace("clip_core/config/curation.py", "le=7", "le=8"),
        {"curate"},
    ),
}


def checked(project: Path) -> dict[str, str]:
    return {file.stem: file.read_text(encoding="utf-8") for file in (project / CHECKED).iterdir()}


def test_an_edit_changes_what_check_finds_of_exactly_the_stages_that_reach_it(project_copy: Path) -> None:
    before, touched = checked(project_copy), set()
    assert before.keys() == ALL
    for name, (edit, stages) in EDITS.items():
        edit(project_copy)
        assert stages_run(run_in(project_copy, "dvc", "repro", "check").stdout) == ["check"], name
        after = checked(project_copy)
        assert {stage for stage in ALL if before[stage] != after[stage]} == stages, name
        before, touched = after, touched | stages
    status = json.loads(run_in(project_copy, "dvc", "status", "--json", "dvc.yaml").stdout)
    assert {stage.partition("@")[0] for stage in status} == {stage for stage in touched if "ablation" not in stage}


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", output)


def test_a_comment_reruns_check_alone_and_status_is_clean_again(project_copy: Path) -> None:
    EDITS["a comment, a docstring and the layout"][0](project_copy)
    assert stages_run(run_in(project_copy, "dvc", "repro").stdout) == ["check"]
    assert json.loads(run_in(project_copy, "dvc", "status", "--json", "dvc.yaml").stdout) == {}


def test_edited_code_that_makes_the_same_bytes_reruns_its_stage_and_nothing_after_it(project_copy: Path) -> None:
    EDITS["a stage's own file"][0](project_copy)
    assert stages_run(run_in(project_copy, "dvc", "repro").stdout) == ["check", "pack"]


def test_a_stage_refuses_other_packages_than_the_locked_ones_and_names_both(project_copy: Path) -> None:
    lock_another_timm(project_copy)
    result = run_in(project_copy, "dvc", "repro", check=False)
    assert result.returncode != 0
    assert (
        f"timm: installed {installed_version('timm')}, locked 0.0.1. `make setup` installs the locked" in result.stdout
    )
    assert stages_run(result.stdout) == ["check", "text_start"]
    outcome = json.loads((project_copy / ".work" / "text_start" / "outcome.json").read_text(encoding="utf-8"))
    assert outcome["kind"] == "refused"


def test_a_stage_refuses_code_that_was_edited_after_check_had_looked(project_copy: Path) -> None:
    EDITS["a stage's own file"][0](project_copy)
    command = ["python", "-m", "stages.pack", "--curated", "data/curated", "--raw", "data/raw", "--out", "data/packed"]
    result = run_in(project_copy, *command, check=False)
    assert result.returncode == 2
    assert result.stdout.startswith("error: stages.pack: changed since `check` looked; run `dvc repro` again")


def test_the_lock_holds_the_packages_that_decide_bits_and_the_environment_is_the_locked_one() -> None:
    assert locked_versions(ROOT / "requirements.lock") == {name: installed_version(name) for name in PACKAGES}


def test_a_stage_reaches_what_it_imports_inside_functions_starts_or_reads_from_beside_the_code() -> None:
    deploy = reached_by("stages.deploy").code
    assert {"clip_core.serve.triton_models", "clip_core/serve/templates/image_core/1/model.py"} <= deploy.keys()
    assert "clip_core/data/sources/emoji_families.toml" in reached_by("stages.ingest").code
    assert "clip_core.train.setup" in reached_by("stages.ablation_arm").code
    assert "torch" not in reached_by("stages.pack").versions
    assert "onnxscript" in reached_by("stages.export").versions


def test_check_and_the_data_stages_never_reach_torch() -> None:
    for stage in ("check", "ingest", "validate", "curate", "pack"):
        assert "torch" not in reached_by(f"stages.{stage}").versions

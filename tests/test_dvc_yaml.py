"""`dvc.yaml` tells the truth: what a stage may read stands there, and its code decides by construction."""

import importlib
import shlex
from functools import cache
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.repo.index import Index
from dvc.stage import PipelineStage

from stages.check import modules_of_stages
from stages.command import CHECKED, PIPELINES, declared, parsed, sections_in, sections_of
from tests.conftest import ROOT


@cache
def stages_of(pipeline: str) -> list[PipelineStage]:
    """The stages as DVC resolves them, with every item of a foreach or matrix."""
    with Repo(str(ROOT)) as repo:
        stages = Index.from_file(repo, str(ROOT / pipeline)).stages
        return [stage for stage in stages if isinstance(stage, PipelineStage)]


def words_of(stage: PipelineStage) -> list[str]:
    """The stage's command: python, -m, the module, its arguments."""
    return shlex.split(str(stage.cmd))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_stage_depends_on_what_check_found_of_its_own_module(pipeline: str) -> None:
    for stage in stages_of(pipeline):
        module = words_of(stage)[2]
        if module != "stages.check":
            assert module in modules_of_stages()
            checked = [dep.def_path for dep in stage.deps if dep.def_path.startswith(str(CHECKED))]
            assert checked == [str(CHECKED / f"{module.partition('.')[2]}.json")], stage.name


def test_check_looks_at_all_code_the_lock_and_all_params() -> None:
    (check,) = [stage for stage in stages_of("dvc.yaml") if stage.name == "check"]
    assert {dep.def_path for dep in check.deps} == {"clip_core", "stages", "requirements.lock", "params.yaml"}
    assert [out.def_path for out in check.outs] == [str(CHECKED)]


@pytest.mark.parametrize("module", sorted(modules_of_stages()))
def test_a_stage_gets_the_params_that_dvc_yaml_declares_for_it_and_no_others(module: str) -> None:
    main = importlib.import_module(module).main
    kind = sections_in(main)["params"]
    assert {field.alias or name for name, field in kind.model_fields.items()} == declared(module)
    sections_of(main, module, ROOT / "params.yaml")  # and they are there


def test_what_no_bit_depends_on_is_declared_by_no_stage() -> None:
    for module in modules_of_stages():
        assert not any(f"{key}.".startswith(("intervals.", "loader.")) for key in declared(module))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_command_fits_the_signature_of_its_stage_and_its_paths_are_deps_and_outs(pipeline: str) -> None:
    for stage in stages_of(pipeline):
        arguments = parsed(importlib.import_module(words_of(stage)[2]).main, words_of(stage)[3:])
        paths = {
            str(path)
            for name, value in arguments.items()
            for path in (value if isinstance(value, tuple) else [value])
            if isinstance(path, Path) and name != "params_file"
        }
        known = {entry.def_path for entry in [*stage.deps, *stage.outs]}
        for path in paths:
            assert any(is_inside(path, other) or is_inside(other, path) for other in known), f"{stage.name}: {path}"


def is_inside(inner: str, outer: str) -> bool:
    return f"{inner}/".startswith(f"{outer}/")


def test_the_pipeline_file_is_a_table_that_one_can_read() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 195

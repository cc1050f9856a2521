"""`dvc.yaml` tells the truth: what a stage can reach or read is named there, and nothing else."""

import ast
import functools
import importlib
import shlex
from collections.abc import Callable
from pathlib import Path

import grimp
import pytest
import tyro
from dvc.repo import Repo
from dvc.repo.index import Index
from dvc.stage import PipelineStage

from clip_core.params_file import read_yaml
from tests.conftest import ROOT

PIPELINES = ["dvc.yaml", "recipes/ablation/dvc.yaml"]
# config.py and params_file.py hold no values (a stage that reads a value names it among its params). The package's own
# module resolves `clip_core.load` lazily, a way that no stage takes: with it an edit of the model would rerun ingest.
LEFT_OUT = {"clip_core.config", "clip_core.params_file", "clip_core"}


@functools.cache
def stages_of(pipeline: str) -> list[PipelineStage]:
    """The stages as DVC resolves them, with every item of a foreach or matrix."""
    with Repo(str(ROOT)) as repo:
        stages = Index.from_file(repo, str(ROOT / pipeline)).stages
        return [stage for stage in stages if isinstance(stage, PipelineStage)]


def words_of(stage: PipelineStage) -> list[str]:
    """The stage's command: python, -m, the module, its arguments."""
    return shlex.split(str(stage.cmd))


def module_of(stage: PipelineStage) -> str:
    return words_of(stage)[2]


@functools.cache
def graph() -> grimp.ImportGraph:
    """Who imports whom, also inside functions; imports for type checkers alone are left out."""
    return grimp.build_graph("clip_core", "stages", exclude_type_checking_imports=True, cache_dir=None)


@functools.cache
def reached_code(module: str) -> set[str]:
    """The files of code, templates and tables whose change may change what `module` does, relative to the project."""
    modules, files, found = set(), set(), [module]
    while found:
        name = found.pop()
        if name in modules | LEFT_OUT | {""}:
            continue
        modules.add(name)
        file = file_of(name)
        if has_code(file):
            files.add(file)
        data = data_of(file)
        files |= data
        found += [
            name.rpartition(".")[0],  # a package is imported before its modules
            *graph().find_modules_directly_imported_by(name),
            *started_by(file),
            *(other for template in data if template.suffix == ".py" for other in imported_by(template)),
        ]
    return {str(file.relative_to(ROOT)) for file in files}


def file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def has_code(file: Path) -> bool:
    """Whether there is more in a module than a docstring."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(file.read_text(encoding="utf-8")).body)


def data_of(module: Path) -> set[Path]:
    """The files beside `module`, or in folders beside it, that it names."""
    named = {
        node.value for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)
    }
    beside = [
        path
        for path in module.parent.iterdir()
        if path.name in named and path.suffix != ".py" and not (path / "__init__.py").exists()  # imports name packages
    ]
    return {file for path in beside for file in [path, *path.rglob("*")] if file.is_file() and file.suffix != ".pyc"}


def started_by(module: Path) -> set[str]:
    """The modules that `module` runs as a process, with `python -m`: a string is the name and nothing else."""
    strings = {
        str(node.value)
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    return strings & graph().modules


def imported_by(template: Path) -> list[str]:
    """The project's modules that a Python file outside the packages imports."""
    imports = [
        node for node in ast.walk(ast.parse(template.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    return [str(node.module) for node in imports if node.module in graph().modules]


def named_code(stage: PipelineStage) -> set[str]:
    """The files of code that a stage's deps name; a folder names all files in it."""
    paths = [ROOT / dep.def_path for dep in stage.deps if dep.def_path.startswith(("clip_core/", "stages/"))]
    return {
        str(file.relative_to(ROOT))
        for path in paths
        for file in ([path] if path.suffix else path.rglob("*"))
        if (file.is_file() and "__pycache__" not in file.parts) or not path.exists()
    }


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_file_of_code_that_a_stage_can_reach_is_among_its_deps(pipeline: str) -> None:
    missing = {f"{stage.name}": reached_code(module_of(stage)) - named_code(stage) for stage in stages_of(pipeline)}
    assert not lines_of(missing), f"not among the deps:\n{lines_of(missing)}"


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_no_dep_is_code_that_the_stage_cannot_reach(pipeline: str) -> None:
    docstrings = {str(file_of(module).relative_to(ROOT)) for module in graph().modules if not has_code(file_of(module))}
    idle = {
        f"{stage.name}": named_code(stage) - reached_code(module_of(stage)) - docstrings
        for stage in stages_of(pipeline)
    }
    assert not lines_of(idle), f"rerun the stage for nothing:\n{lines_of(idle)}"


def lines_of(found: dict[str, set[str]]) -> str:
    return "\n".join(f"{stage}: {', '.join(sorted(names))}" for stage, names in found.items() if names)


def declared_params(stage: PipelineStage) -> set[str]:
    return {name for dep in stage.deps for name in getattr(dep, "params", [])}


@functools.cache
def read_params(module: str) -> set[str]:
    """What a stage reads of the object from `load_params`, as dotted names."""
    tree = ast.parse(file_of(module).read_text())
    names = {"params": ""}  # variable -> the section it holds
    on_the_way = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
            section = section_of(node.value, {})
            if section is not None:
                names[target.id] = section
                on_the_way.add(node.value)
    found = {section_of(node, names) for node in ast.walk(tree) if node not in on_the_way} - {None, ""}
    return {str(section).replace("validate_", "validate").lstrip(".") for section in found}


def section_of(node: ast.AST, names: dict[str, str]) -> str | None:
    """The section that an expression reads, with a dot before each part; None when it reads no params."""
    match node:
        case ast.Call(func=ast.Name(id="load_params")):
            return ""
        case ast.Name(id=name):
            return names.get(name)
        case ast.Attribute(value=value, attr=attribute) if (section := section_of(value, names)) is not None:
            return f"{section}.{attribute}"
    return None


def is_related(name: str, others: set[str]) -> bool:
    """Whether `name` is one of `others`, or a part of one, or has one as its part."""
    return any(f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.") for other in others)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_params_of_a_stage_are_those_that_it_reads(pipeline: str) -> None:
    wrong = {}
    for stage in stages_of(pipeline):
        module, declared = module_of(stage), declared_params(stage)
        read = read_params(module)
        called = [other for other in graph().find_modules_directly_imported_by(module) if other.startswith("stages.")]
        read_with_called = read.union(*map(read_params, called))  # those get what they read from this one
        wrong[f"{stage.name} reads"] = {name for name in read if not is_related(name, declared)}
        wrong[f"{stage.name} does not read"] = {name for name in declared if not is_related(name, read_with_called)}
    assert not lines_of(wrong), lines_of(wrong)


def test_no_section_is_among_the_params_of_a_stage_that_reads_a_part_of_it() -> None:
    tree = read_yaml(ROOT / "params.yaml")
    too_broad = {}
    for stage in stages_of("dvc.yaml"):
        read = read_params(module_of(stage))
        sections = {name for name in declared_params(stage) - read if isinstance(tree.get(name), dict)}
        too_broad[f"{stage.name}"] = {name for name in sections if not {f"{name}.{key}" for key in tree[name]} <= read}
    assert not lines_of(too_broad), f"rerun the stage for nothing:\n{lines_of(too_broad)}"


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_command_fits_the_signature_of_its_stage_and_its_paths_are_deps_and_outs(pipeline: str) -> None:
    for stage in stages_of(pipeline):
        arguments = parsed(importlib.import_module(module_of(stage)).main, words_of(stage)[3:])
        paths = {
            str(path)
            for value in arguments.values()
            for path in (value if isinstance(value, tuple) else [value])
            if isinstance(path, Path)
        }
        known = {entry.def_path for entry in [*stage.deps, *stage.outs]}
        for path in paths:
            assert any(is_inside(path, other) or is_inside(other, path) for other in known), f"{stage.name}: {path}"


def parsed(main: Callable[..., None], arguments: list[str]) -> dict[str, object]:
    """What `main` would be called with."""

    @functools.wraps(main)
    def keep(**values: object) -> dict[str, object]:
        return values

    return tyro.cli(keep, args=arguments)


def is_inside(inner: str, outer: str) -> bool:
    return f"{inner}/".startswith(f"{outer}/")

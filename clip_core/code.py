"""Who reaches what: the code and the packages that decide what a module of this project computes.

Comments, docstrings and layout decide nothing and are left out.
"""

import ast
import functools
import hashlib
import importlib.metadata
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.errors import UserError

if TYPE_CHECKING:
    import grimp

ROOT = Path(__file__).resolve().parents[1]
# The first resolves `clip_core.load` lazily, a way that no stage takes: with it an edit of the model would rerun
# ingest. The second refuses what does not fit, or lets it pass as it is.
LEFT_OUT = {"clip_core", "clip_core.train.fits"}
# The packages whose versions decide bits -> the names under which code imports them. pandas and pyarrow are not among
# them: they carry values through unchanged.
PACKAGES = {
    "torch": "torch",
    "timm": "timm",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "numpy": "numpy",
    "pillow": "PIL",
    "peft": "peft",
    "lmdb": "lmdb",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
}


@dataclass(frozen=True)
class Reached:
    """What a module can reach."""

    code: dict[str, str]  # module, or file beside one -> hash
    versions: dict[str, str]  # package -> installed version


@functools.cache
def reached_by(module: str) -> Reached:
    """What decides what `module` computes, as it is now: all that it can import, start or read from beside the code."""
    code, visited, found = {}, {*LEFT_OUT, ""}, [module]
    while found:
        name = found.pop()
        if name in visited:
            continue
        visited.add(name)
        if not _is_ours(name):
            continue
        file = _file_of(name)
        tree = _parsed(file)
        if tree.body:
            code[name] = _hash(ast.unparse(tree).encode())
        imported = list(_graph().find_modules_directly_imported_by(name))
        for beside in _data_of(file):
            if beside.suffix == ".py":  # a template that runs elsewhere, with this project's code
                imported += _imported_by(_parsed(beside))
            code[str(beside.relative_to(ROOT))] = _hash(beside.read_bytes())
        started = {text for text in _strings_in(tree) & _graph().modules if _is_ours(text)}  # with `python -m`
        found += [name.rpartition(".")[0], *imported, *started]
    packages = [package for package, name in PACKAGES.items() if name in visited]
    return Reached(dict(sorted(code.items())), {package: installed_version(package) for package in sorted(packages)})


def installed_version(package: str) -> str:
    """The version without the build that follows a plus: torch's wheels for a CPU and a GPU are one version."""
    return importlib.metadata.version(package).partition("+")[0]


def commit_of(project: Path = ROOT) -> str:
    """The commit of the code in the folder, with a plus where files differ from it; "unknown" without git."""
    with suppress(OSError, subprocess.CalledProcessError):
        head, changed = (
            subprocess.run(["git", *command], cwd=project, check=True, capture_output=True, text=True).stdout.strip()
            for command in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "-uno"))
        )
        return head + ("+" if changed else "")
    return "unknown"


def locked_versions(lock: Path) -> dict[str, str]:
    """The versions of PACKAGES in the lock file; raises UserError where one is missing."""
    from packaging.requirements import Requirement

    versions = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line[:1].isalpha() and "==" in line:
            wanted = Requirement(line.rstrip(" \\"))
            if wanted.name in PACKAGES and (wanted.marker is None or wanted.marker.evaluate()):
                versions[wanted.name] = str(wanted.specifier).removeprefix("==").partition("+")[0]
    if missing := sorted(PACKAGES.keys() - versions):
        raise UserError(f"{lock}: no version of {', '.join(missing)}; take the file back from git")
    return versions


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The names that are not the same in both, sorted."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


@functools.cache
def _graph() -> "grimp.ImportGraph":
    """Who imports whom, also inside functions; imports for type checkers alone are left out."""
    import grimp

    return grimp.build_graph(
        "clip_core", "stages", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("clip_core", "stages")


def _file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _parsed(file: Path) -> ast.Module:
    """The syntax tree without docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            del node.body[0]
    return tree


def _data_of(module: Path) -> Iterator[Path]:
    """The files beside `module`, or in folders beside it, that it names."""
    named = _strings_in(_parsed(module))
    for path in sorted(module.parent.iterdir()):
        # imports name packages and modules
        if path.name in named and path.suffix != ".py" and not (path / "__init__.py").exists():
            for file in sorted([path, *path.rglob("*")]):
                if file.is_file() and file.suffix != ".pyc":
                    yield file


def _strings_in(tree: ast.Module) -> set[str]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _imported_by(tree: ast.Module) -> list[str]:
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [str(node.module) for node in imports if node.module in _graph().modules]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]

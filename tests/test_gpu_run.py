"""The run that waits for a GPU, rehearsed on the CPU with nothing but the packages that it names."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_speed import SETTINGS
from tests.conftest import ENVIRONMENT, ROOT

FINDER = """
import sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def name_of(requirement: str) -> str:
    """As packages are compared: `pydantic_core>=2` is `pydantic-core`."""
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def needed(packages: tuple[str, ...]) -> set[str]:
    """These packages and all that they need."""
    found, waiting = set(), [name_of(package) for package in packages]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            try:
                waiting += [name_of(need) for need in requires(name) or [] if "extra ==" not in need]
            except PackageNotFoundError:  # of another platform
                continue
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with which Python finds no package but those that the run names."""
    allowed = needed((*gpu.PACKAGES, *gpu.WHEELS))
    absent = {
        module
        for module, names in packages_distributions().items()
        if not any(name_of(name) in allowed for name in names)
    }
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(f"ABSENT = {absent!r}\n{FINDER}", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_rehearsal_has_all_parts_in_its_json_with_the_packages_it_names_alone(bare: Path, tmp_path: Path) -> None:
    found = run(bare, "--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.json"))
    assert "exit code" not in found.stdout and found.returncode == 0, found.stdout
    result = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert list(result["parts"]) == list(gpu.PARTS)
    figures = {name: part["figures"] for name, part in result["parts"].items()}
    assert all(test["outcome"] in ("passed", "skipped") for test in figures["tests"])
    assert sum(test["outcome"] == "passed" for test in figures["tests"]) >= 13
    for name, settings in SETTINGS.items():
        assert len(figures[f"speed of {name}"]) == len(settings)
        assert all(figure["pairs_per_s"] > 0 for figure in figures[f"speed of {name}"])
    assert [figure["loss"] for figure in figures["loss"]] == ["ours", "dense"] * 2
    assert "speed of vit-l-14: done" in found.stdout


def test_without_a_gpu_it_says_how_to_rehearse(bare: Path) -> None:
    found = run(bare, "--device", "cuda")
    assert (found.returncode, found.stdout) == (
        1,
        "error: torch finds no CUDA device here; `--device cpu --tiny` rehearses the run\n",
    )


def run(bare: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, "PYTHONPATH": str(bare), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu", *options]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_part_that_fails_or_hangs_leaves_its_figures_and_what_it_said() -> None:
    told = "import sys, time; print('{\"figure\": 1}', flush=True); "
    failed = gpu._run(gpu.Part(("-c", told + "sys.exit('no kernel')"), 9), False, 60, ENVIRONMENT)
    assert failed["outcome"] == "exit code 1" and "no kernel" in failed["said"]
    hung = gpu._run(gpu.Part(("-c", told + "time.sleep(600)"), 9), False, 2, ENVIRONMENT)
    assert hung["outcome"] == "stopped after 2 s"
    assert failed["figures"] == hung["figures"] == [{"figure": 1}]

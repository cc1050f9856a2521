"""What is imported where: light commands stay light, and no module does work on import."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT

HEAVY = {"torch", "timm", "transformers", "great_expectations", "onnxruntime", "onnx", "prefect", "dvc"}
# A stage pays for what it uses when it uses it; Prefect's flows are the one place where Prefect is.
LIGHT = [
    *sorted(f"stages.{file.stem}" for file in (ROOT / "stages").glob("*.py") if "run(main)" in file.read_text()),
    "clip_core",
    "clip_core.config",
    "clip_core.params_file",
    "clip_core.project",
    "clip_core.recipe",
    "clip_core.serve.client",
    "clip_core.serve.install",
    "clip_core.data.sources",
    "clip_core.data.store",
    "clip_core.evaluate.summary",
    "flows.clean",
    "flows.dag",
    "flows.server",
    "flows.platform",
]


def test_light_commands_import_nothing_heavy() -> None:
    assert not {name: found for name, found in heavy_imports(LIGHT).items() if found}


def test_the_flow_imports_neither_torch_nor_dvc() -> None:
    assert set(heavy_imports(["flows.pipeline"])["flows.pipeline"]) == {"prefect"}


def heavy_imports(modules: list[str]) -> dict[str, list[str]]:
    """Module -> the heavy packages that importing it brings in, each in a process of its own."""
    code = f"import importlib, sys; importlib.import_module(sys.argv[1]); print(*({HEAVY} & set(sys.modules)))"
    found = {}
    for module in modules:
        done = subprocess.run(
            [sys.executable, "-c", code, module], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
        )
        found[module] = sorted(done.stdout.split())
    return found


def test_importing_the_light_modules_prints_nothing_and_writes_nothing(tmp_path: Path) -> None:
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", code, *LIGHT],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["stages.ingest", "stages.stage2", "stages.deploy"])
def test_a_stage_shows_its_help_without_loading_anything_heavy(command: str) -> None:
    code = (
        f"import runpy, sys; sys.argv = ['stage', '--help']\ntry: runpy.run_module('{command}', run_name='__main__')\n"
    )
    code += f"except SystemExit: print('HEAVY', *({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert "--out" in done.stdout or "--release" in done.stdout, done.stderr
    assert done.stdout.split("HEAVY")[1].split() == []

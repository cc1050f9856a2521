"""All that waits for a GPU, in one run of at most 8 minutes on a bare machine without a network; one JSON.

The machine has PACKAGES; WHEELS travel as wheels, fetched where there is a network (for that machine's Python):

    pip download --no-deps --only-binary=:all: -d wheels $(python -m benchmarks.gpu --packages)
    python -m benchmarks.gpu --wheels wheels --out gpu.json       # on that machine
    python -m benchmarks.gpu --device cpu --tiny --out gpu.json   # the rehearsal, anywhere

A part is a program that prints a line of JSON for each figure; it has a time limit, and others run when it fails.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from clip_core import guard
from clip_core.env import SWITCHES
from clip_core.files import atomic_write

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "torch>=2.11",
    "transformers>=5.17",
    "timm",
    "peft",
    "pyarrow",
    "pandas",
    "scipy",
    "pytest",
)  # and their needs
WHEELS = (  # with the versions of here, over those of the machine
    *("transformers", "timm", "peft", "lmdb", "ruamel.yaml"),
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
)
SECONDS = 480
TEST = re.compile(r"^(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)


class Part(NamedTuple):
    command: tuple[str, ...]  # of Python
    seconds: int  # at most


PARTS = {
    "limits": Part(("-m", "benchmarks.gpu_limits"), 40),
    "tests": Part(("-m", "pytest", "-v", "--noconftest", "-p", "no:cacheprovider", "tests/test_gpu.py"), 120),
    "speed of vit-b-16": Part(("-m", "benchmarks.gpu_speed", "vit-b-16"), 120),
    "speed of vit-l-14": Part(("-m", "benchmarks.gpu_speed", "vit-l-14"), 150),
    "loss": Part(("-m", "benchmarks.gpu_loss"), 50),
}


def main() -> int:
    """The exit code: 0 when all parts went well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, whose figures mean nothing")
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels of what --packages names")
    parser.add_argument("--out", type=Path, default=ROOT / ".work/gpu.json")
    parser.add_argument("--packages", action="store_true", help="name what must travel as wheels, and end")
    options = parser.parse_args()
    if options.packages:
        print(*(f"{name}=={version(name)}" for name in WHEELS))
        return 0
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("error: torch finds no CUDA device here; `--device cpu --tiny` rehearses the run")
    start = time.monotonic()
    result: dict = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "device": options.device,
        "tiny": options.tiny,
        "parts": {},
    }
    with tempfile.TemporaryDirectory() as site:
        if options.wheels:
            _install(options.wheels, Path(site))
        path = filter(None, [site, os.environ.get("PYTHONPATH")])
        environment = {**os.environ, **SWITCHES, "PYTHONPATH": os.pathsep.join(path)}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever else that machine has
        if options.device == "cpu":
            environment |= {"CUDA_VISIBLE_DEVICES": "", "CLIP_REHEARSED_GPU": "1"}
        for name, part in PARTS.items():
            left = SECONDS - (time.monotonic() - start)
            found = _run(part, options.tiny, min(part.seconds, left), environment)
            result["parts"][name] = found
            result["seconds"] = round(time.monotonic() - start, 1)
            atomic_write(options.out, json.dumps(result, indent=1) + "\n")  # with what there is, should this one end
            print(_told(name, found), flush=True)
    print(f"wrote {options.out} after {result['seconds']} s")
    return int(any(found["outcome"] != "done" for found in result["parts"].values()))


def _run(part: Part, is_tiny: bool, seconds: float, environment: dict[str, str]) -> dict:
    """The part's figures, how it ended, and what it said where it did not go well."""
    command = [sys.executable, *part.command, *(["--tiny"] if is_tiny and "pytest" not in part.command else [])]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = guard.start(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(max(seconds, 0))
            outcome = f"exit code {code}" if code else "done"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {seconds:.0f} s"
        guard.stop(process)
        output.seek(0)
        said = output.read()
    figures = [json.loads(line) for line in said.splitlines() if line.startswith("{") and line.endswith("}")]
    figures += [{"test": test, "outcome": how.lower()} for test, how in TEST.findall(said)]
    found = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1), "figures": figures}
    return found if outcome == "done" else {**found, "said": said[-6000:]}


def _install(wheels: Path, site: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site)]
    subprocess.run([*command, *map(str, sorted(wheels.glob("*.whl")))], check=True)


def _commit() -> str:
    with suppress(OSError):  # no git there
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        return found.stdout.strip() or "unknown"
    return "unknown"


def _told(name: str, found: dict) -> str:
    """A line for the part and one for each figure."""
    lines = [f"{name}: {found['outcome']}, {found['seconds']} s"]
    lines += ["  " + "  ".join(f"{key} {_short(value)}" for key, value in row.items()) for row in found["figures"]]
    return "\n".join([*lines, *found.get("said", "").splitlines()[-15:]])


def _short(value: object) -> str:
    if isinstance(value, list):
        return " - ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())

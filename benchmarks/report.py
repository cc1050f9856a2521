"""The result of a benchmark: a table for people, a JSON file with all that one needs to judge it."""

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.models import ROOT

RESULTS = ROOT / "benchmarks/results"
PACKAGES = ("torch", "timm", "transformers", "tokenizers", "onnxruntime", "cn-clip", "numpy", "pillow")


def machine(threads: int) -> dict:
    """What the figures depend on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()),
        "cores": sum(line.startswith("processor") for line in lines),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_result(name: str, result: dict, folder: Path = RESULTS) -> None:
    """Writes `name`.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {folder / name}.json", file=sys.stderr)


def spread(values: list[float], digits: int = 2) -> str:
    """min - median - max."""
    return " - ".join(f"{value:.{digits}f}" for value in values)


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A Markdown table."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, tuple("-" * width for width in widths), *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |", flush=True)

"""The result of a benchmark: a table for people, a JSON file with all that one needs to judge it.

`python -m benchmarks.report` prints the tables of the results that were kept.
"""

import json
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.models import ROOT

RESULTS = ROOT / "benchmarks/results"
GIB = 2**30
PACKAGES = ("torch", "timm", "transformers", "tokenizers", "onnxruntime", "cn-clip", "numpy", "pillow")


def processor() -> dict[str, int | str]:
    """The processor's model and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return {
        "cpu": next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()),
        "cores": sum(line.startswith("processor") for line in lines),
    }


def machine(threads: int) -> dict:
    """What the figures depend on besides the code."""
    return {
        **processor(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_result(name: str, result: dict, folder: Path = RESULTS) -> None:
    """Writes `name`.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {folder / name}.json", file=sys.stderr)


def spread(values: list[float], digits: int = 2) -> str:
    """min - median - max."""
    return " - ".join(f"{value:.{digits}f}" for value in values)


def print_result(result: dict) -> None:
    """The result as a Markdown table: of a comparison, or of the processes that were timed."""
    rows = {name: found for name, found in result["rows"].items() if "skipped" not in found}
    if "weights_gib" in result:
        _print_table(PROCESSES, [(name, *_processes(found, result["weights_gib"])) for name, found in rows.items()])
    else:
        memory = [key for key in MEMORY if all(key in found for found in rows.values())]  # not in older results
        table: list[tuple[str, ...]] = [
            (name, *_comparison(found), *(f"{found[key]:,.0f}" for key in memory)) for name, found in rows.items()
        ]
        _print_table((*COMPARISON, *(MEMORY[key] for key in memory)), table)


COMPARISON = ("row", "ratio min - median - max", "ours per s", "peer per s", "other cores", "agreement")
MEMORY = {"our_mib": "our MiB", "peer_mib": "peer's MiB"}


def _comparison(found: dict) -> tuple[str, ...]:
    return (
        spread(found["ratio"]) + (f" ({found['disturbed']} disturbed)" if found["disturbed"] else ""),
        f"{found['num'] / found['our_seconds'][1]:,.1f}",
        f"{found['num'] / found['peer_seconds'][1]:,.1f}",
        f"at most {found['other_cores'][2]:.2f}",
        ", ".join(f"{key.replace('_', ' ')} {value:.7g}" for key, value in found["agreement"].items()),
    )


PROCESSES = ("process", "seconds, start to end", "of these imports", "peak GiB", "peak / weights", "other cores")


def _processes(runs: list[dict], weights_gib: float) -> tuple[str, ...]:
    return (
        _spread_of(run["seconds"] for run in runs),
        _spread_of(run["importing"] for run in runs),
        _spread_of(run["peak"] / GIB for run in runs),
        f"{max(run['peak'] for run in runs) / GIB / weights_gib:.2f}",
        f"at most {max(run['other_cores'] for run in runs):.2f}",
    )


def _spread_of(values: Iterable[float]) -> str:
    sorted_values = sorted(values)
    return spread([sorted_values[0], median(sorted_values), sorted_values[-1]])


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, tuple("-" * width for width in widths), *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |", flush=True)


if __name__ == "__main__":
    for file in sorted(RESULTS.glob("*.json")):
        kept = json.loads(file.read_text(encoding="utf-8"))
        versions = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
        print(f"{file.stem}: {kept['model']}, {kept['threads']} threads of {kept['cpu']}, {kept['date']}; {versions}\n")
        print_result(kept)
        print()

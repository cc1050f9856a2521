"""The result of a benchmark: a JSON file with all that one needs to judge it; docs/benchmarks.md for people.

`python -m benchmarks.report` writes that page from the results that were kept.
"""

import json
import platform
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.models import ROOT

RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/benchmarks.md"
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
        "command": re.sub(r" --work \S+", "", " ".join(["python", *sys.orig_argv[1:]])),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def keep(name: str, result: dict, folder: Path = RESULTS) -> None:
    """Writes `name`.json, where it is kept the page of all of them, and prints its table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {folder / name}.json", file=sys.stderr)
    if folder == RESULTS:
        PAGE.write_text(page(), encoding="utf-8")
    print(table_of(result), OTHER_CORES, sep="\n", flush=True)


OTHER_CORES = "other cores: kept busy by other processes; above 0.15 a repeat counts as disturbed"


def spread(values: list[float], digits: int = 2) -> str:
    """min - median - max."""
    return " - ".join(f"{value:.{digits}f}" for value in values)


def page() -> str:
    """docs/benchmarks.md: the table of each result that was kept."""
    return HEAD + "".join(_section(file) for file in sorted(RESULTS.glob("*.json")))


HEAD = """# What was measured

Each section is a file of `benchmarks/results/`, written by the command under its name; this page is made of them, so
that no figure is typed by hand. Ours and the peer run in turn, each in a process of its own; three figures are min -
median - max. Other cores: kept busy by other processes meanwhile; a repeat with more than 0.15 of it is taken again,
and counts as disturbed if that did not help.
"""


def _section(file: Path) -> str:
    kept = json.loads(file.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
    where = f"{kept['model']}, {kept['threads']} threads of {kept['cpu']}, {kept['date']}; {versions}"
    return f"\n## {file.stem}\n\n`{kept['command']}`: {where}\n\n{table_of(kept)}\n"


def table_of(result: dict) -> str:
    """The result as a Markdown table: of a comparison, or of the processes that were timed."""
    rows = {name: found for name, found in result["rows"].items() if "skipped" not in found}
    if "weights_gib" in result:
        return _table(PROCESSES, [(name, *_processes(found, result["weights_gib"])) for name, found in rows.items()])
    memory = [key for key in MEMORY if all(key in found for found in rows.values())]  # not in older results
    cells: list[tuple[str, ...]] = [
        (name, *_comparison(found), *(f"{found[key]:,.0f}" for key in memory)) for name, found in rows.items()
    ]
    return _table((*COMPARISON, *(MEMORY[key] for key in memory)), cells)


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


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in lines
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""What the benchmarks have in common: their options, and of those that compare, rows that run or say why not."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.compare import compare
from benchmarks.models import NAMES, SMALL, WORK, prepare
from benchmarks.report import RESULTS, keep, machine, spread


class Row(NamedTuple):
    """A comparison: what each side does beyond what all rows share."""

    task: str  # images, texts, tokens
    num: int  # pictures or texts in a run
    ours: dict
    peer: dict

    @property
    def name(self) -> str:
        ours = " ".join(str(value) if value is not True else key for key, value in self.ours.items())
        peer = " ".join(map(str, self.peer.values()))
        return f"{self.num} {self.task}: {ours or 'ours'} / {peer}"


def read_options(name: str, repeats: int, **sizes: int) -> argparse.Namespace:
    """The command line of the benchmark `name`; `sizes` are options of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--model", default="vit-b-16", choices=[*NAMES, SMALL])
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--work", type=Path, default=WORK, help="where the prepared models lie")
    parser.add_argument("--results", type=Path, default=RESULTS)
    for size, default in sizes.items():
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, default=default)
    return parser.parse_args()


def run(name: str, rows: Iterable[Row]) -> None:
    """A benchmark that compares, with its command line."""
    options = read_options(name, repeats=7)
    shared = {"model": str(prepare(options.model, options.work)), "threads": options.threads}
    measured: dict[str, dict] = {}
    for row in rows:
        if options.only not in row.name:
            continue
        if reason := _skipped(row):
            measured[row.name] = {"skipped": reason}
            print(f"{row.name}: skipped, {reason}", flush=True)
            continue
        spec = {**shared, "task": row.task, "num": row.num}
        found = compare({**spec, "side": "ours", **row.ours}, {**spec, **row.peer}, options.repeats)
        measured[row.name] = {"num": row.num, **found}
        print(f"{row.name}: {spread(measured[row.name]['ratio'])} times as fast", flush=True)
    result = {"model": options.model, **machine(options.threads), "rows": measured}
    keep(name, result, options.results)


def _skipped(row: Row) -> str:
    import torch

    if "cuda" in (*row.ours.values(), *row.peer.values()) and not torch.cuda.is_available():
        return "torch finds no CUDA device here"
    return ""

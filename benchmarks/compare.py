"""Two sides in turn, with an eye on the rest of the machine: ratios as min - median - max."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.models import ROOT
from benchmarks.noise import family, now, other_cores

MAX_OTHER_CORES = 0.15  # above it a repeat is taken again
LEAST_SECONDS = 2.0  # of a measurement: long enough to be warm again after the other side's


class Worker:
    """One side in a process of its own."""

    def __init__(self, spec: dict, found: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps({**spec, "found": str(found)})],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(spec["threads"]), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self.num_runs = 1
        self.memory = 0  # bytes that its first run took at most

    def warm_up(self) -> None:
        """Waits until it is ready and finds how many runs make a measurement."""
        self.memory = self._answer()["memory"]
        self.num_runs = max(1, round(LEAST_SECONDS / self.seconds()))

    def seconds(self) -> float:
        """How long one run takes now."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.num_runs}\n")
        self.process.stdin.flush()
        return self._answer()["seconds"] / self.num_runs

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker {self.process.args} ended with exit code {self.process.wait()}")
        return json.loads(line)


@contextmanager
def workers(*specs: dict) -> Generator[tuple[list[Worker], list[np.ndarray]]]:
    """A worker for each of the specs, and what each of them computes."""
    started: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = [Path(folder, f"{i}.npy") for i in range(len(specs))]
            for spec, file in zip(specs, files, strict=True):
                started.append(Worker(spec, file))
            for worker in started:
                worker.warm_up()
            yield started, [np.load(file) for file in files]
        finally:
            for worker in started:
                worker.process.kill()
                worker.process.communicate()


def compare(ours: dict, peer: dict, repeats: int) -> dict[str, Any]:
    """Measures both sides in turn; a repeat that others disturbed is taken again, as often as there are repeats."""
    with workers(ours, peer) as ((our_worker, peer_worker), (our_found, peer_found)):
        taken = []
        for _ in range(2 * repeats):
            start = now(family(os.getpid()))  # with what the workers have started
            seconds = our_worker.seconds(), peer_worker.seconds()
            taken.append((other_cores(start, now(family(os.getpid()))), *seconds))
            if sum(others <= MAX_OTHER_CORES for others, *_ in taken) == repeats:
                break
        kept = sorted(taken)[:repeats]  # the quietest
        memory = {"our_mib": our_worker.memory / 2**20, "peer_mib": peer_worker.memory / 2**20}
    return {
        "ratio": spread_of([theirs / ours for _, ours, theirs in kept]),
        "our_seconds": spread_of([ours for _, ours, _ in kept]),
        "peer_seconds": spread_of([theirs for *_, theirs in kept]),
        **memory,
        "other_cores": spread_of([others for others, *_ in kept]),
        "repeats": repeats,
        "taken_again": len(taken) - repeats,
        "disturbed": sum(others > MAX_OTHER_CORES for others, *_ in kept),
        "agreement": agreement(our_found, peer_found),
    }


def agreement(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """How alike the two sides' answers are: ids, unit vectors, or one number."""
    if ours.ndim == 0:
        return {"difference": abs(float(ours - theirs))}
    if ours.dtype.kind == "i":
        return {"equal_rows": float((ours == theirs).all(axis=1).mean())}
    largest = float(np.abs(ours - theirs).max())
    return {"least_cosine": float((ours * theirs).sum(axis=1).min()), "largest_difference": largest}


def spread_of(values: list[float]) -> list[float]:
    """Min, median, max."""
    return [min(values), median(values), max(values)]

"""What a command takes: its seconds, and the most memory that it and all it started had at a time."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ENVIRONMENT

EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Taken:
    seconds: float
    peak_mib: float
    said: str


def watch(project: Path, *command: str) -> Taken:
    """Runs the command in `project`; raises AssertionError with the end of what it said when it fails."""
    start, peak, done = time.monotonic(), [0], threading.Event()
    process = subprocess.Popen(
        command, cwd=project, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )

    def sample() -> None:
        while not done.wait(EVERY):
            peak[0] = max(peak[0], sum(memory_of(number) for number in family_of(process.pid)))

    watcher = threading.Thread(target=sample)
    watcher.start()
    said, _ = process.communicate()
    done.set()
    watcher.join()
    assert process.returncode == 0, f"{' '.join(command)}: exit {process.returncode}\n{said[-3000:]}"
    return Taken(round(time.monotonic() - start, 1), round(peak[0] / 1024), said)


def repro_each(project: Path, stages: Sequence[str]) -> dict[str, dict[str, float]]:
    """Stage -> seconds and peak memory of `dvc repro`, DVC's own included, one stage after the other."""
    found = {}
    for stage in stages:
        taken = watch(project, "dvc", "repro", "--single-item", stage)
        found[stage] = {"seconds": taken.seconds, "peak_mib": taken.peak_mib}
        print(f"{stage}: {taken.seconds:.0f} s, {taken.peak_mib:.0f} MiB", flush=True)
    return found


def family_of(process: int) -> list[int]:
    """The process and all that descend from it."""
    family = [process]
    for parent in family:  # the list grows as it is gone through
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                family += map(int, children.read_text(encoding="ascii").split())
    return family


def memory_of(process: int) -> int:
    """KiB of the process; memory that several share counts in parts (PSS), files that are only mapped do not."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
        facts = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
        return facts.get("Pss_Anon:", 0) + facts.get("Pss_Shmem:", 0)
    return 0


def size_of(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(entry.stat().st_size for path, _, names in os.walk(folder) for entry in (Path(path, n) for n in names))


def counts_of(project: Path) -> dict[str, dict[str, int]]:
    """Folder of data -> rows read, kept and rejected by the stage that made it."""
    files = {name: project / "data" / name / "counts.json" for name in ("raw", "valid", "curated", "packed")}
    counts = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    return {name: {key: count[key] for key in ("read", "kept", "rejected")} for name, count in counts.items()}

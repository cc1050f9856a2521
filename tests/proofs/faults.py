"""Every stage killed, told to end, and on a full disk: nothing half-made is published, and the next run completes.

`STAGES="pack stage1"` in the environment takes fewer.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ruamel.yaml import YAML

from clip_core.recipe import apply_recipes
from tests.conftest import ENVIRONMENT, copy_of, new_project, run_in
from tests.kills import REPRO, folder_bytes

PATIENCE = 10  # seconds for a stage's processes to be gone once it is told to end
MARGIN = 3 * 2**20  # of room for what DVC itself writes down

# In a project on a file system of its own with little room: the stage, then again with room enough.
FULL_DISK = """
import subprocess, sys
from pathlib import Path
stage, place = sys.argv[1], Path(sys.argv[2])
command = [sys.executable, "-m", *sys.argv[3:], stage]
first = subprocess.run(command, cwd=place, capture_output=True, text=True)
outs = [path for path in sys.stdin.read().split() if (place / path).exists()]
subprocess.run(["mount", "-o", "remount,size=16g", str(place)], check=True)
again = subprocess.run(command, cwd=place, capture_output=True, text=True)
subprocess.run(["cp", "dvc.lock", sys.argv[2] + ".lock"], cwd=place, check=True)
print(first.returncode, again.returncode, " ".join(outs) or "-")
print(first.stdout + first.stderr)
"""


def prove() -> dict:
    """For each fault and stage what was seen; a cell that is not as it should be raises."""
    draw = random.Random(time.time_ns())  # other moments each time
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed = new_project(Path(scratch) / "undisturbed")
        apply_recipes([undisturbed / "recipes" / "smoke.yaml"], undisturbed / "params.yaml")
        run_in(undisturbed, "dvc", "repro")
        lock = locked(undisturbed / "dvc.lock")
        stages = os.environ.get("STAGES", "").split() or list(lock)
        seconds = {stage: undisturbed_seconds(undisturbed, stage) for stage in stages}
        table: dict[str, dict[str, str]] = {}
        for stage in stages:
            moment = draw.uniform(0.3, 0.9) * seconds[stage]
            faults: dict[str, Callable[[Path], str]] = {
                "kill -9": lambda project, s=stage, m=moment: signalled(project, s, m, signal.SIGKILL),
                "told to end": lambda project, s=stage, m=moment: signalled(project, s, m, signal.SIGTERM),
            }
            table[stage] = {}
            for fault, cause in faults.items():
                project = copy_of(undisturbed, Path(tempfile.mkdtemp(dir=scratch)))
                forget(project, stage)
                table[stage][fault] = cause(project)
                unpublished(project, undisturbed, lock[stage])
                run_in(project, *REPRO, stage)
                assert locked(project / "dvc.lock") == lock, f"{stage} after {fault}: other bytes"
                shutil.rmtree(project.parent)
            table[stage]["full disk"] = on_a_full_disk(undisturbed, stage, lock, Path(tempfile.mkdtemp(dir=scratch)))
            print(stage, table[stage], flush=True)
    return {"cells": sum(map(len, table.values())), "table": table}


def signalled(project: Path, stage: str, moment: float, number: signal.Signals) -> str:
    """What a signal to DVC and the stage leaves after so many seconds."""
    command = [*REPRO, "-s", stage]
    process = subprocess.Popen(
        command,
        cwd=project,
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    time.sleep(moment)
    os.killpg(process.pid, number)
    process.wait()
    start = time.monotonic()
    while left := running_in(project):
        assert time.monotonic() - start < PATIENCE, f"{stage} after {number.name}: still there: {left}"
        time.sleep(0.05)
    took = time.monotonic() - start
    return f"after {moment:.1f} s: nothing published, gone in {took:.1f} s; the next run has the same bytes"


def on_a_full_disk(undisturbed: Path, stage: str, lock: dict, folder: Path) -> str:
    """The same on a disk that has room for half of what the stage makes."""
    project = copy_of(undisturbed, folder)
    forget(project, stage)
    outs = [undisturbed / path for path in lock[stage]]
    room = sum(size_of(path) for path in outs) // 2 + MARGIN
    place = folder / "small"
    place.mkdir()
    mount = f'mount -t tmpfs -o size={size_of(project) + room} none {place} && cp -a {project}/. {place} && exec "$@"'
    script = [sys.executable, "-c", FULL_DISK, stage, place, *REPRO, "-s"]
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", *map(str, script)],
        env=ENVIRONMENT,
        input=" ".join(lock[stage]),
        capture_output=True,
        text=True,
        check=True,
    )
    facts, _, said = result.stdout.partition("\n")
    first, again, published = facts.split(" ", 2)
    assert again == "0" and published == "-", (facts, said)
    assert locked(Path(f"{place}.lock")) == lock, f"{stage} after a full disk: other bytes"
    shutil.rmtree(folder)
    if first == "0":
        return "had room enough"
    (told,) = [line for line in said.splitlines() if "full" in line or "No space" in line][:1] or ["?"]
    return f"{told.strip()[:160]}; the next run has the same bytes"


def forget(project: Path, stage: str) -> None:
    """Makes `stage` one that has never run, and leaves nothing that it or others have kept."""
    yaml = YAML()
    lock = yaml.load(project / "dvc.lock")
    for out in lock["stages"].pop(stage).get("outs", []):
        path = project / out["path"]
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    yaml.dump(lock, project / "dvc.lock")
    shutil.rmtree(project / ".work", ignore_errors=True)


def undisturbed_seconds(project: Path, stage: str) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        copy = copy_of(project, Path(scratch))
        forget(copy, stage)
        start = time.monotonic()
        run_in(copy, *REPRO, "-s", stage)
        return time.monotonic() - start


def unpublished(project: Path, undisturbed: Path, outs: dict[str, str]) -> None:
    """Asserts that what the stage makes is not there, or as it is without a fault."""
    for path in outs:
        if (project / path).is_dir():
            assert folder_bytes(project / path) == folder_bytes(undisturbed / path), f"{path}: half of it is published"
        elif (project / path).exists():
            assert (project / path).read_bytes() == (undisturbed / path).read_bytes(), (
                f"{path}: half of it is published"
            )


def locked(file: Path) -> dict[str, dict[str, str]]:
    """Stage -> its outputs with their hashes."""
    stages = YAML(typ="safe").load(file)["stages"]
    return {name: {out["path"]: out["md5"] for out in stage.get("outs", [])} for name, stage in stages.items()}


def running_in(project: Path) -> list[str]:
    from tests.prefect_api import processes_in

    return [" ".join(command) for command in processes_in(project).values()]


def size_of(path: Path) -> int:
    """What it takes on a disk, in whole pages."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in files)

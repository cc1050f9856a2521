"""Every stage killed, and on a full disk: nothing is half-made, and the next run completes.

`STAGES="pack stage1"` in the environment takes fewer.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML

from clip_core.params_file import read_yaml
from clip_core.recipe import apply_recipes
from flows.dag import stages_upstream_first
from flows.healing import heal
from tests.conftest import ENVIRONMENT, copy_of, new_project, run_in
from tests.kills import REPRO, folder_bytes
from tests.prefect_api import processes_in
from tests.test_own_data import write_pairs

AT_ONCE = 3  # stages that are tried at the same time
RECIPE = """
init: {warm_start: {schedule: {num_steps: 12}}}
stage1: {schedule: {num_steps: 12}}
stage2: {schedule: {num_steps: 12}}
"""
PATIENCE = 10  # seconds for a stage's processes to be gone
TIMED = "reports/deploy.json"  # holds times, so it is never the same twice
QUOTES_TIMES = "reports/report.html"
WRONG = "wrong"

# On a file system of its own that is full once so many bytes more lie there: the command; then with room enough, again.
FULL_DISK = """
import shutil, subprocess, sys
place, room, *command = sys.argv[1:]
def has(size):
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)
def run():
    return subprocess.run(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
has(shutil.disk_usage(place).used + int(room))
first = run()
there = sys.stdin.read().split()
subprocess.run(["cp", "-aL", "--parents", *there, f"{place}.first"], stderr=subprocess.DEVNULL, cwd=place)
has("16g")
again = run()
assert again.returncode == 0, again.stdout
shutil.copy(f"{place}/dvc.lock", f"{place}.first")
print(first.returncode)
print(first.stdout)
"""


class Undisturbed(NamedTuple):
    """A project on which every stage has run."""

    project: Path
    lock: dict[str, dict[str, str]]  # stage -> its outputs with their hashes
    seconds: dict[str, float]  # that the stage took under DVC


def prove() -> dict:
    """For each stage and fault when, and what was seen; where the next run has not the same bytes it raises."""
    ENVIRONMENT["OMP_NUM_THREADS"] = "1"  # at most a core for each stage that is tried
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed = run_undisturbed(Path(scratch) / "undisturbed")
        stages = os.environ.get("STAGES", "").split() or list(undisturbed.seconds)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            cells = threads.map(partial(cells_of, undisturbed, Path(scratch)), stages)
            table = dict(zip(stages, cells, strict=True))
    wrong = [(stage, fault) for stage, found in table.items() for fault in found if found[fault].startswith(WRONG)]
    assert not wrong, wrong
    return {"cells": sum(map(len, table.values())), "table": table}


def run_undisturbed(folder: Path) -> Undisturbed:
    project = new_project(folder)
    write_pairs(project / "my_pairs")
    (project / "recipes" / "faults.yaml").write_text(RECIPE, encoding="utf-8")
    for recipe in ("smoke", "table", "faults"):
        apply_recipes([project / "recipes" / f"{recipe}.yaml"], project / "params.yaml")
    seconds = {}
    for stage in stages_upstream_first(project):
        start = time.monotonic()
        run_in(project, *REPRO, "-s", stage.name)
        seconds[stage.name] = time.monotonic() - start
    return Undisturbed(project, locked(project / "dvc.lock"), seconds)


def cells_of(undisturbed: Undisturbed, scratch: Path, stage: str) -> dict[str, str]:
    """Fault -> what the stage made of it."""
    found = {}
    for fault, tried in {"kill -9": after_a_kill, "full disk": on_a_full_disk}.items():
        try:
            found[fault] = tried(undisturbed, stage, scratch)
        except (AssertionError, subprocess.SubprocessError) as error:
            found[fault] = f"{WRONG}: {error}"
        print(f"{stage}, {fault}: {found[fault]}", flush=True)
    return found


def after_a_kill(undisturbed: Undisturbed, stage: str, scratch: Path) -> str:
    """What `kill -9` to DVC and the stage leaves, at a moment of its work by chance."""
    took = undisturbed.seconds[stage]
    while True:
        moment = random.uniform(0.4, 0.95) * took
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            project = without(undisturbed, stage, Path(folder))
            process = subprocess.Popen(
                [*REPRO, "-s", stage],
                cwd=project,
                env=ENVIRONMENT,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
            )
            time.sleep(moment)
            if process.poll() is not None:  # it was quicker this time
                took *= 0.9
                continue
            start = time.monotonic()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            while left := processes_in(project):
                assert time.monotonic() - start < PATIENCE, f"still there: {left}"
                time.sleep(0.05)
            gone = time.monotonic() - start
            assert_none_is_half_made(project, undisturbed, stage)
            heal(project)  # as `make run` and the flows do
            run_in(project, *REPRO)
            assert_same_bytes(project / "dvc.lock", undisturbed)
        return f"after {moment:.1f} of {took:.1f} s; gone in {gone:.1f} s"


def on_a_full_disk(undisturbed: Undisturbed, stage: str, scratch: Path) -> str:
    """The same on a disk that has room for half of what the stage makes, or for less where that are links."""
    room = sum(size_of(undisturbed.project / path) for path in undisturbed.lock[stage]) // 2
    while not (told := on_a_disk_of(room, undisturbed, stage, scratch)):
        assert room, f"{stage} needs no room at all"
        room //= 16
    return f"room for {room // 1024} KiB; {told}"


def on_a_disk_of(room: int, undisturbed: Undisturbed, stage: str, scratch: Path) -> str:
    """What the stage says where there is so much room; nothing where that is enough."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        project = without(undisturbed, stage, Path(folder))
        place, first, notes = (Path(folder, name) for name in ("small", "small.first", "notes"))
        for made in (place, first, notes):
            made.mkdir()
        (project / ".dvc" / "tmp").symlink_to(notes)  # what DVC notes there is not to fill the disk
        mount = f'mount -t tmpfs -o size=16g none {place} && cp -a {project}/. {place} && exec "$@"'
        script = [sys.executable, "-c", FULL_DISK, place, room, *REPRO, "-s", stage]
        result = subprocess.run(
            ["unshare", "-rm", "sh", "-c", mount, "sh", *map(str, script)],
            env=ENVIRONMENT,
            input=" ".join(undisturbed.lock[stage]),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{stage} after a full disk: {result.stderr}"
        code, _, said = result.stdout.partition("\n")
        if code == "0":
            return ""
        assert_none_is_half_made(first, undisturbed, stage)
        assert_same_bytes(first / "dvc.lock", undisturbed)
        told = [line.strip() for line in said.splitlines() if line.startswith("error: ") and "make room" in line]
        assert told, f"{stage} on a full disk says only: {said[-3000:]}"
        return told[-1].replace(f"{place}/", "")[:120]


def without(undisturbed: Undisturbed, stage: str, folder: Path) -> Path:
    """A copy of the project in which `stage` has never run, and which has nothing that stages keep."""
    project = copy_of(undisturbed.project, folder)
    lock = read_yaml(project / "dvc.lock")
    for out in lock["stages"].pop(stage)["outs"]:
        path = project / out["path"]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    YAML().dump(lock, project / "dvc.lock")
    shutil.rmtree(project / ".work", ignore_errors=True)
    return project


def assert_none_is_half_made(project: Path, undisturbed: Undisturbed, stage: str) -> None:
    """What the stage makes is not there, or as it is without a fault."""
    for name in undisturbed.lock[stage]:
        path, whole = project / name, undisturbed.project / name
        if name == TIMED and path.exists():
            assert json.loads(path.read_bytes()).keys() == json.loads(whole.read_bytes()).keys()
        elif path.is_dir():
            assert folder_bytes(path) == folder_bytes(whole), f"{name}: half of it is there"
        elif path.exists():
            assert path.read_bytes() == whole.read_bytes(), f"{name}: half of it is there"


def assert_same_bytes(lock: Path, undisturbed: Undisturbed) -> None:
    now = locked(lock)
    changed = {name for stage, outs in undisturbed.lock.items() for name in outs if outs[name] != now[stage][name]}
    made_again = {TIMED, QUOTES_TIMES} if TIMED in changed else set()
    assert changed <= made_again, f"{changed}: other bytes than without a fault"


def locked(file: Path) -> dict[str, dict[str, str]]:
    """Stage -> its outputs with their hashes."""
    stages = read_yaml(file)["stages"]
    return {name: {out["path"]: out["md5"] for out in stage["outs"]} for name, stage in stages.items()}


def size_of(path: Path) -> int:
    """What it takes on a disk, in whole pages."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in files)

"""A stage on two devices under `dvc repro`: started by it, ended with it, resumed by it."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, run_in
from tests.kills import REPRO, after_a_checkpoint, folder_bytes, forget, kill, set_devices


def ranks_of(project: Path) -> dict[str, int]:
    """The processes that train in `project`: rank -> process id."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            at = (process / "cwd").readlink()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        rank = [value[5:].decode() for value in environment if value.startswith(b"RANK=")]
        if rank and at == project and b"stages.stage1" in command:
            found[rank[0]] = int(process.name)
    return found


@pytest.fixture
def on_two(project_copy: Path) -> Path:
    """A project whose stage 1 has just run on two devices."""
    set_devices(project_copy, 2)
    forget(project_copy, "stage1")
    output = run_in(project_copy, *REPRO, "stage1").stdout
    assert "training on 2 devices" in output
    assert len(re.findall("step 20/20", output)) == 1, "one rank speaks"
    return project_copy


def test_a_rank_that_is_killed_is_named_no_other_is_left_and_the_next_run_goes_on_to_the_same_bytes(
    on_two: Path,
) -> None:
    undisturbed = folder_bytes(on_two / "models" / "stage1")
    forget(on_two, "stage1")
    process = subprocess.Popen(
        [*REPRO, "stage1"], cwd=on_two, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not after_a_checkpoint(on_two / ".work" / "stage1"):
        time.sleep(0.001)
    os.kill(ranks_of(on_two)["1"], signal.SIGKILL)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode != 0
    assert re.search(r"rank 1 \(process \d+\) ended by SIGKILL, and so all others were stopped", output), output
    assert not ranks_of(on_two)

    output = run_in(on_two, *REPRO, "stage1").stdout
    assert "resuming at step" in output
    assert folder_bytes(on_two / "models" / "stage1") == undisturbed


@pytest.mark.slow
def test_all_killed_at_once_leave_no_orphan_and_one_device_goes_on_with_a_warning(on_two: Path) -> None:
    forget(on_two, "stage1")
    assert kill(on_two, "stage1", after_a_checkpoint)
    deadline = time.monotonic() + 30
    while ranks_of(on_two) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not ranks_of(on_two)
    set_devices(on_two, 1)
    output = run_in(on_two, *REPRO, "stage1").stdout
    assert "warning: saved on 2 ranks, going on with 1" in output
    assert "step 20/20" in output


@pytest.mark.slow
def test_a_tower_that_normalises_over_the_batch_is_refused_on_two_cpus(project_copy: Path) -> None:
    set_devices(project_copy, 2)
    forget(project_copy, "stage2")
    result = run_in(project_copy, *REPRO, "stage2", check=False)
    assert result.returncode != 0
    assert "normalises over the batch, and on CPUs torch can not do that over several ranks" in result.stdout

"""`kill -9` at any moment of a training, `dvc repro` again: the same bytes as if nothing had happened."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import ENVIRONMENT, run_in

REPRO = ["dvc", "repro", "--no-run-cache"]  # DVC's cache has the result: here it is to be made again


def forget(project: Path, stage: str) -> None:
    """Makes `stage` one that has never run."""
    yaml = YAML()
    lock = yaml.load(project / "dvc.lock")
    del lock["stages"][stage]
    yaml.dump(lock, project / "dvc.lock")
    shutil.rmtree(project / "models" / stage)


def kill_after_a_checkpoint(project: Path, stage: str) -> None:
    """Runs `stage` under DVC and kills DVC and the trainer with it as soon as a checkpoint lies on disk."""
    process = subprocess.Popen(
        [*REPRO, stage],
        cwd=project,
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        while not list((project / ".work" / stage).glob("*/checkpoint*")):
            assert process.poll() is None, f"{stage} ended before it could be killed"
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("stage", ["init", "stage1", "stage2"])
def test_a_killed_training_goes_on_from_its_checkpoint_and_ends_with_the_same_bytes(
    stage: str, project_copy: Path, smoke_project: Path
) -> None:
    forget(project_copy, stage)
    kill_after_a_checkpoint(project_copy, stage)
    assert not (project_copy / "models" / stage).exists(), "the killed run had already published its weights"

    output = run_in(project_copy, *REPRO).stdout

    resumed = re.search(r"resuming at step (\d+)", output)
    assert resumed, output
    steps = [int(step) for step in re.findall(r"step +(\d+)/", output)]
    assert steps, output
    assert min(steps) == int(resumed[1])  # no earlier step is computed again
    assert int(resumed[1]) > 1
    assert re.findall(r"Running stage '([^']+)'", output) == [stage]  # the same bytes, so nothing after it runs
    for made in ("models", "reports"):
        assert folder_bytes(project_copy / made / stage) == folder_bytes(smoke_project / made / stage)
    assert not list((project_copy / ".work" / stage).glob("*/checkpoint*"))  # a finished training leaves none

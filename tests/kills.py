"""`kill -9` in the middle of a training stage, and what `dvc repro` then makes of it."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ruamel.yaml import YAML

from tests.conftest import ENVIRONMENT, run_in

STAGES = ("init", "stage1", "stage2")
REPRO = ["dvc", "repro", "--no-run-cache"]  # DVC's cache has the result: here it is to be made again
Moment = Callable[[Path], bool]  # the stage's folder under .work -> whether it is time to kill


def after_a_checkpoint(work: Path) -> bool:
    return any(work.glob("*/checkpoint-*"))


def before_a_checkpoint(work: Path) -> bool:
    """A step is done, and none is saved."""
    return any(log.stat().st_size for log in work.glob("*/train.csv")) and not after_a_checkpoint(work)


def while_publishing(work: Path) -> bool:
    """The final weights are being written, or just there."""
    models = work.parents[1] / "models"
    return any(models.glob(f".{work.name}.*.aside")) or (models / work.name).exists()


def while_saving(work: Path) -> bool:
    return any(work.glob("*/.checkpoint-*.aside"))


def after_seconds(seconds: float) -> Moment:
    start = time.monotonic()
    return lambda _: time.monotonic() - start >= seconds


def forget(project: Path, stage: str) -> None:
    """Makes `stage` one that has never run."""
    yaml = YAML()
    lock = yaml.load(project / "dvc.lock")
    del lock["stages"][stage]
    yaml.dump(lock, project / "dvc.lock")
    shutil.rmtree(project / "models" / stage)


def set_devices(project: Path, number: int) -> None:
    """Makes trainings run on that many processes, of which no stage knows that it is to run again."""
    file = project / "params.yaml"
    text, changed = re.subn(r"(?<=\n  devices: )\w+", str(number), file.read_text(encoding="utf-8"))
    assert changed == 1
    file.write_text(text, encoding="utf-8")


def kill(project: Path, stage: str, is_time: Moment) -> bool:
    """Runs `stage` under DVC and kills DVC and the trainer with it; False when the result was kept before that."""
    process = subprocess.Popen(
        [*REPRO, stage],
        cwd=project,
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        while not is_time(project / ".work" / stage):
            if process.poll() is not None:
                return False
            time.sleep(0.0005)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return stage not in YAML().load(project / "dvc.lock")["stages"]


def go_on(project: Path, stage: str, undisturbed: Path, *targets: str) -> int:
    """Runs `dvc repro` (of `targets`) again and gives the number of steps that were not computed again.

    Asserts that all bytes are those of the undisturbed project, that no later stage ran, and that nothing is left.
    """
    output = run_in(project, *REPRO, *targets).stdout
    resumed = re.search(r"resuming at step (\d+)", output)
    steps = [int(step) for step in re.findall(r"step +(\d+)/", output)]
    first = int(resumed[1]) if resumed else 1
    assert not steps or min(steps) == first, output
    assert re.findall(r"Running stage '([^']+)'", output) == [stage], output  # the same bytes, so nothing after it runs
    for made in ("models", "reports"):
        assert folder_bytes(project / made / stage) == folder_bytes(undisturbed / made / stage)
    assert not list((project / ".work" / stage).glob("*/"))  # a finished training leaves nothing
    return first - 1


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

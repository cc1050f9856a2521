"""Workers of pytest, which run at the same time: what they make once for all, and what one of them does at a time."""

import fcntl
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # else pytest runs the tests itself


def common_folder(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of the whole run."""
    return factory.getbasetemp().parent if IS_WORKER else factory.getbasetemp()


@contextmanager
def one_worker_at_a_time(factory: pytest.TempPathFactory, what: str) -> Generator[None]:
    """Runs the block when no other worker is in one of the same name."""
    with (common_folder(factory) / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(factory: pytest.TempPathFactory, what: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first worker to want it has made; the others wait for it."""
    folder = common_folder(factory) / what
    made = folder.with_suffix(".made")
    with one_worker_at_a_time(factory, what):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # half of it, of a worker that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder

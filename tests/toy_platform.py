"""`python -m flows.platform` on a toy repository, for tests and proofs."""

import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clip_core.guard import free_port
from tests.conftest import ENVIRONMENT, ROOT
from tests.prefect_api import processes_in, until


def deployments(toy: Path, *names: str) -> None:
    """Gives the toy prefect.yaml with these alone, which start only when they are asked to."""
    head, *parts = (ROOT / "prefect.yaml").read_text(encoding="utf-8").split("  - name: ")
    text = head + "".join(f"  - name: {part}" for part in parts if part.partition("\n")[0] in names)
    (toy / "prefect.yaml").write_text(re.sub(r"    (schedules|triggers):\n( {6}.*\n)+", "", text), encoding="utf-8")


@contextmanager
def platform(toy: Path, **environment: str) -> Generator[str]:
    """Its API's address, which the caller may ask (tests/prefect_api.py); stopped, it is to leave no process."""
    process, url = start_platform(toy, **environment)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_HOME", str(toy / ".prefect"))
            yield url
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    until(lambda: not processes_in(toy))


def start_platform(toy: Path, **environment: str) -> tuple[subprocess.Popen[bytes], str]:
    """Its process, once it is up, and its API's address."""
    port, log = free_port(), toy / "platform.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.platform", "--port", str(port)],
            cwd=toy,
            env={**ENVIRONMENT, "PYTHONPATH": str(ROOT), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    until(lambda: "Prefect is up" in log.read_text(encoding="utf-8") or process.poll() is not None)
    assert process.poll() is None, log.read_text(encoding="utf-8")
    return process, f"http://127.0.0.1:{port}/api"

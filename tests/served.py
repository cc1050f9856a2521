"""`make serve` for tests: the gateway as a process of its own, on any free port."""

import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ENVIRONMENT, ROOT
from tests.tiny_release import Release


@contextmanager
def serving(project: Path, *arguments: str) -> Generator[tuple[str, subprocess.Popen]]:
    """The address of the page of a gateway that runs in `project`, and its process; Ctrl-C ends it."""
    environment = ENVIRONMENT if (project / "clip_core").exists() else ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "clip_core.serve.gateway", "--port", "0", *arguments]
    process = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("the page: "):
                break
        assert lines and lines[-1].startswith("the page: "), f"the gateway did not start:\n{''.join(lines)}"
        yield lines[-1].split()[-1], process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def of(release: Release) -> list[str]:
    """The gateway's arguments for a tiny release."""
    return ["--repository", str(release.repository), "--images", str(release.store.folder)]

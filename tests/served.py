"""`make serve` for tests: the gateway as a process of its own, on any free port."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ENVIRONMENT, ROOT
from tests.tiny_release import Release, a_serving


@contextmanager
def serving(
    project: Path, *arguments: str, channel: Callable[[], tuple[int, int]] = os.pipe
) -> Generator[tuple[str, subprocess.Popen]]:
    """The address of the page of a gateway that runs in `project`, and its process; Ctrl-C ends it.

    Its output goes through a `channel`, a pipe or a terminal. The user's browser is a command that notes the addresses
    it is to open in the file `opened`.
    """
    browser = project / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> "{project}/opened"\n', encoding="utf-8")
    browser.chmod(0o755)
    environment = ENVIRONMENT if (project / "clip_core").exists() else ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    environment = environment | {"BROWSER": str(browser), "DISPLAY": ":99"}
    command = [sys.executable, "-m", "clip_core.serve.gateway", "--port", "0", *arguments]
    readable, writable = channel()
    process = subprocess.Popen(command, cwd=project, env=environment, stdout=writable)
    os.close(writable)
    with os.fdopen(readable) as output:  # open until it has said all
        try:
            lines = []
            for line in output:
                lines.append(line)
                if line.startswith("the page: "):
                    break
            assert lines and lines[-1].startswith("the page: "), f"the gateway did not start:\n{''.join(lines)}"
            yield lines[-1].split()[-1], process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def of(folder: Path, *releases: Release) -> list[str]:
    """The gateway's arguments for tiny releases in the new folder `folder`; the first of them is current."""
    return ["--serving", str(a_serving(folder, *releases))]

"""A process of a run, whose output stands in the run's log."""

import asyncio
import subprocess
import sys
from collections import deque

from prefect import get_run_logger

from clip_core.guard import start, stop
from flows.dag import environment

GIT_HINTS = ("To track the changes", "git add", "To enable auto staging", "dvc config", "Use `dvc push`")


async def heard(*module: str) -> tuple[int, list[str]]:
    """Runs `python -m` that with its output in the log; gives its exit code and the last lines."""
    process = start(
        [sys.executable, "-m", *module],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        return await asyncio.to_thread(relay, process, get_run_logger())
    finally:  # a cancelled run waits here, blocking, until its processes are gone
        stop(process)


def relay(process: subprocess.Popen[str], logger) -> tuple[int, list[str]]:
    """Logs a process's output line by line as it comes; gives its exit code and the last lines."""
    assert process.stdout
    last_lines = deque(maxlen=12)
    for line in map(str.rstrip, process.stdout):
        if line and not line.strip().startswith(GIT_HINTS):
            logger.info(line)
            last_lines.append(line)
    return process.wait(), list(last_lines)

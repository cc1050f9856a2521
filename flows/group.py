"""A command that lives no longer than its caller: it and its process group end when standard input closes."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

# DVC ignores SIGINT while its child runs: the child ends (its last checkpoint stays), then DVC releases its locks.
SIGNALS = ((signal.SIGINT, 15), (signal.SIGTERM, 5), (signal.SIGKILL, 5))  # and seconds of patience with each


def start(command: list[str], **options) -> subprocess.Popen:
    """`command` in its own process group, tied to this process: even `kill -9` of the caller ends the group."""
    guard = [sys.executable, "-I", __file__, *command]
    return subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True, **options)


def stop(process: subprocess.Popen) -> int:
    """Ends the group of a process from `start`, waits until it is gone and gives its exit code."""
    assert process.stdin
    process.stdin.close()
    return process.wait()


def guard(command: list[str]) -> int:
    """Runs `command` until it ends by itself or standard input closes; gives its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job would hand down "ignore"
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=end_when_input_closes, args=(child,), daemon=True).start()
    code = child.wait()
    signal_group(child, signal.SIGKILL)  # what the command left behind
    return code if code >= 0 else 128 - code


def end_when_input_closes(child: subprocess.Popen) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    for number, patience in SIGNALS:
        signal_group(child, number)
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        return


def signal_group(child: subprocess.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # all gone
        os.killpg(child.pid, number)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))

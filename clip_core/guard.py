"""A command that lives no longer than its owner: it and all it started end when standard input closes.

The owner holds the other end, so closing it and being killed, even by `kill -9`, are the same to the guard.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

# DVC ignores SIGINT while its child runs: the child ends (its last checkpoint stays), then DVC releases its locks.
SIGNALS = ((signal.SIGINT, 15), (signal.SIGTERM, 5), (signal.SIGKILL, 5))  # and seconds of patience with each
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <sys/prctl.h>


def start(command: list[str], shared_memory: str = "", **options) -> subprocess.Popen:
    """`command` in its own process group, tied to this process: even `kill -9` of the caller ends the group.

    Shared memory whose name begins with `shared_memory`, if given, is removed when it has ended.
    """
    guard = [sys.executable, "-I", __file__, shared_memory, *command]
    return subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True, **options)


def stop(process: subprocess.Popen) -> int:
    """Ends the group of a process from `start`, waits until it is gone and gives its exit code."""
    assert process.stdin
    process.stdin.close()
    return process.wait()


def free_port() -> int:
    """A port of loopback that is free at this moment, for a server that is about to start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def guard(shared_memory: str, command: list[str]) -> int:
    """Runs `command` until it ends by itself or standard input closes; gives its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job would hand down "ignore"
    set_process(PR_SET_CHILD_SUBREAPER, 1)  # what the command leaves behind becomes our child
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    threading.Thread(target=end_when_input_closes, args=(child,), daemon=True).start()
    code = child.wait()
    signal_group(child, signal.SIGKILL)  # a group that hangs, or what the command left behind
    with suppress(ChildProcessError):  # all have ended
        while True:
            os.wait()
    for segment in Path("/dev/shm").glob(f"{shared_memory}*") if shared_memory else ():
        segment.unlink(missing_ok=True)
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


def end_with_parent() -> None:
    set_process(PR_SET_PDEATHSIG, signal.SIGTERM)


def set_process(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1], sys.argv[2:]))

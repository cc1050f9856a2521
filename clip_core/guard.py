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
import time
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


def end_with_owner() -> None:
    """Ends this process soon after the one that started it has died, be it by `kill -9`; for a stage under DVC.

    Between the two may stand a shell that does nothing but wait: then its own parent counts, too.
    """
    owners, process = [], os.getppid()
    while process > 0:
        owners.append((process, start_of(process)))
        command = _of_process(process, "cmdline").split("\0")
        if "-c" not in command[1:-1]:  # a shell that runs this command
            break
        process = int(_status_of(process)[1])

    def watch() -> None:
        while all(started == start_of(process) for process, started in owners):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    if all(started for _, started in owners):  # elsewhere than on Linux nobody knows
        threading.Thread(target=watch, daemon=True).start()


def start_of(process: int) -> str:
    """When a living process started, in the kernel's ticks; empty when it has ended, and where there is no /proc."""
    status = _status_of(process)
    return status[19] if status and status[0] not in "ZX" else ""  # zombies have ended


def _status_of(process: int) -> list[str]:
    return _of_process(process, "stat").rpartition(")")[2].split()


def _of_process(process: int, file: str) -> str:
    try:
        return Path(f"/proc/{process}/{file}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


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

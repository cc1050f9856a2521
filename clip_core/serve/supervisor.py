"""Runs a command until its standard input closes, then ends it and all it started: a server never outlives its owner.

`python -m clip_core.serve.supervisor PREFIX SECONDS COMMAND ...`: the owner holds the other end of standard input, so
closing it and being killed are the same to us. SECONDS is the time the command has to end by itself; shared memory
whose name begins with PREFIX is removed afterwards.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <sys/prctl.h>


def main() -> None:
    prefix, seconds, *command = sys.argv[1:]
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the command leaves behind becomes our child, so that we can wait for it
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    ended = os.pidfd_open(process.pid)
    readable, _, _ = select.select([sys.stdin, ended], [], [])
    if ended not in readable:
        process.terminate()
        select.select([ended], [], [], float(seconds))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # a server that hangs, or the stubs of one that crashed
    code = process.wait()
    _wait_for_all_children()
    for segment in Path("/dev/shm").glob(f"{prefix}*"):
        segment.unlink(missing_ok=True)
    sys.exit(code if code >= 0 else 128 - code)


def _wait_for_all_children() -> None:
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _end_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    main()

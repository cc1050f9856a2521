"""Runs a command until its standard input closes, then ends it and all it started: a server never outlives its owner.

`python -m clip_core.serve.supervisor PREFIX SECONDS COMMAND ...`: the owner holds the other end of standard input, so
closing it and being killed are the same to us. SECONDS is the time the command has to end by itself; shared memory
whose name begins with PREFIX is removed afterwards.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> None:
    prefix, seconds, *command = sys.argv[1:]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    ended = os.pidfd_open(process.pid)
    readable, _, _ = select.select([sys.stdin, ended], [], [])
    if ended not in readable:
        process.terminate()
        try:
            process.wait(float(seconds))
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)  # what is left: a server that hangs, stubs of one that crashed
    except ProcessLookupError:
        pass
    code = process.wait()
    for segment in Path("/dev/shm").glob(f"{prefix}*"):
        segment.unlink(missing_ok=True)
    sys.exit(code if code >= 0 else 128 - code)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    main()

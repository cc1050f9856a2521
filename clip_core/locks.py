"""Locks that end with who holds them, and signatures by which a process is known to live."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from clip_core.guard import start_of


def try_lock(descriptor: int) -> bool:
    """Takes the lock on an open file or folder, unless another holds it."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def is_at(path: Path, descriptor: int) -> bool:
    """Whether what is open still lies at `path`: a lock on what was removed or replaced keeps nobody out."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def signature() -> str:
    """This process's number and its start, since numbers are used again."""
    return f"{os.getpid()}@{start_of(os.getpid())}"


def is_alive(signature: str) -> bool:
    """Whether the process that signed lives; a number alone is that of whoever has it now."""
    number, _, start = signature.partition("@")
    try:
        os.kill(int(number), 0)
    except (ValueError, ProcessLookupError):  # nobody has signed yet, or who has is gone
        return False
    except PermissionError:
        pass  # another user's
    return start in ("", start_of(int(number)))

"""How this process treats memory that was freed."""

import ctypes
from collections.abc import Generator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of <malloc.h>
LARGE = 1 << 20  # bytes
KEPT = 1 << 30  # bytes


@contextmanager
def freed_memory_returned() -> Generator[None]:
    """Meanwhile the memory of each large array goes back to the system when it is freed, where libc is glibc.

    Otherwise glibc comes to keep it, in pieces that the next array does not fit into: a model whose layers are
    rewritten one after another would take its memory twice. Afterwards up to `KEPT` bytes are kept for the next
    allocation: given back, the system clears each page anew for the next layer or the next picture, which takes a
    fifth of the time of inference in bf16 and half of a JPEG's decoding.
    """
    _mallopt(M_MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        _mallopt(M_TRIM_THRESHOLD, KEPT)
        _mallopt(M_MMAP_THRESHOLD, KEPT)


def keep_freed_memory() -> None:
    """From now on freed memory stays with this process for what it allocates next, where libc is glibc.

    A step of a training takes the gigabytes that the step before has freed. Given back, each page is cleared anew by
    the system: a sixth of the time of stage 1, a third of stage 2 in one look (ViT-B/16, fp32, a virtual machine). They
    take more room, since there are gaps: 5 % with that model, half as much again with a small one in small portions.
    """
    _mallopt(M_MMAP_MAX, 0)
    _mallopt(M_TRIM_THRESHOLD, -1)  # never


def give_back_freed_memory() -> None:
    """From now on what is freed goes back to the system at once, where libc is glibc; for where memory is short."""
    _mallopt(M_MMAP_MAX, 2**16)
    _mallopt(M_MMAP_THRESHOLD, 2**17)
    _mallopt(M_TRIM_THRESHOLD, 2**17)


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)

"""How this process treats memory that was freed."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
LARGE = 1 << 20  # bytes
KEPT = 1 << 30  # bytes


def return_freed_memory() -> None:
    """Gives the memory of each large array back to the system when it is freed, where libc is glibc.

    Otherwise glibc comes to keep it, in pieces that the next array does not fit into: a model whose layers are
    rewritten one after another would take its memory twice.
    """
    _mallopt(M_MMAP_THRESHOLD, LARGE)


def keep_freed_memory() -> None:
    """Keeps up to `KEPT` bytes of freed memory for the next allocation, where libc is glibc.

    Otherwise glibc gives the memory of large arrays back to the system at once, which then clears each page anew for
    the next layer or the next picture: a fifth of the time of inference in bf16, half of a JPEG's decoding.
    """
    _mallopt(M_TRIM_THRESHOLD, KEPT)
    _mallopt(M_MMAP_THRESHOLD, KEPT)


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)

"""How long a piece of work takes, and how much memory at most: of the process, or of the GPU where it is done there."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median


def seconds_of(work: Callable[[], object], repeats: int, device: str = "cpu") -> list[float]:
    """Min, median, max."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return [min(taken), median(taken), max(taken)]


def forget_peak(device: str = "cpu") -> int:
    """Lets `peak` count from here on; the bytes that are held now."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _of_process("VmRSS")


def peak(device: str = "cpu") -> int:
    """The most bytes held since `forget_peak`."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return _of_process("VmHWM")


def _of_process(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

"""The most memory that a piece of work takes: of the process, or of the GPU where the work is done there."""

from pathlib import Path


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

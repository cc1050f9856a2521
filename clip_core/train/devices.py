"""What a device has and does: memory, arithmetic in training steps, links to others. Only the CPU is measured here."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clip_core.model.precision import pick_device

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One kind."""

    name: str
    memory: int  # bytes that a training may take
    flops: dict[str, float]  # precision -> FLOP a second that a whole training step achieves
    link: float  # bytes a second in and out, to the other devices
    source: str  # of the figures
    is_cpu: bool = False


def _of_gpu(gib: float) -> int:
    """All but a tenth, which is assumed to go to CUDA's context, work spaces and the allocator's gaps."""
    return int(0.9 * gib * GIB)


KINDS = {
    "h200": Device(
        "h200",
        _of_gpu(139),
        {"fp32": 30e12, "bf16": 400e12},
        300e9,
        "assumed: 45 % of the peak in fp32 (67 TFLOP/s), 40 % in bf16 (989), two thirds of NVLink 4; no GPU has run it",
    ),
    "a100-80": Device(
        "a100-80",
        _of_gpu(79),
        {"fp32": 9e12, "bf16": 59e12},
        200e9,
        "bf16: what the paper's stage 2 of H/14 achieved on 184 of them, in fp16 (2.2 days); the rest assumed: 45 % of "
        "the peak in fp32 (19.5 TFLOP/s), two thirds of NVLink 3",
    ),
    "v100-32": Device(
        "v100-32",
        _of_gpu(31.7),
        {"fp32": 7e12, "bf16": 7e12},
        100e9,
        "assumed: 45 % of the peak in fp32 (15.7 TFLOP/s), and no faster in bf16, which it does not multiply (in fp16 "
        "the paper achieved 12 with B/16, 3.0 days on 128); two thirds of NVLink 2",
    ),
    "cpu": Device(
        "cpu",
        20 * GIB,
        {"fp32": 140e9, "bf16": 380e9},
        1e9,
        "measured: both stages of B/16, batch 32, on 2 cores of an AMD EPYC (Zen 5) with 24 GB; the link is assumed",
        is_cpu=True,
    ),
}


def this_device() -> Device:
    """The device that a training here runs on, with the memory that is free now; `measured` tells its arithmetic."""
    device = pick_device("auto")
    if device.type == "cuda":
        name, free = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0]
    else:
        name, free = "this CPU", free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    source = "free memory; 85 % of what a matrix product achieves here now; the link is assumed"
    return Device(name, free, {}, 1e9 if device.type == "cpu" else 100e9, source, device.type == "cpu")


def measured(here: Device) -> Device:
    """The same after a look at its arithmetic, which is short unless a CPU has to imitate bf16: then half a minute."""
    device = pick_device("auto")
    return replace(here, flops={"fp32": _achieved(device, torch.float32), "bf16": _achieved(device, torch.bfloat16)})


def free_memory() -> int:
    """Bytes that this machine, and the cgroup that holds this process, have left."""
    left = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            left.append(int(line.split()[1]) * 1024)
    for limit, used, files in (  # of a container: cgroup version 2, version 1
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        folder = Path("/sys/fs/cgroup")
        most, taken = (_lines(folder / name)[:1] for name in (limit, used))
        if most and taken and most[0].isdecimal():
            # pages of files count as used, and go when memory is wanted
            cached = [line.split()[1] for line in _lines(folder / files) if line.startswith("inactive_file ")]
            left.append(int(most[0]) - int(taken[0]) + sum(map(int, cached)))
    return min(left)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _achieved(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a step: 85 % of those of a product of the shape of ViT-B/16's MLP."""
    rows, columns = torch.ones(1024, 768, dtype=dtype, device=device), torch.ones(768, 3072, dtype=dtype, device=device)
    best = 0.0
    for _ in range(5):
        begun = time.perf_counter()
        float((rows @ columns)[0, 0])  # waits for the device
        best = max(best, 2 * 1024 * 768 * 3072 / (time.perf_counter() - begun))
    return 0.85 * best

"""On which device, and with which numbers, a model computes.

fp32 is what figures are compared in and what `clip_core.load` uses unless it is told otherwise: features then agree
with the reference to 1e-5 on every machine. bf16 is for speed, on processors that multiply it in hardware.
"""

import sys
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from clip_core.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]


def pick_device(device: str) -> torch.device:
    """The device by its name; `auto` is the current GPU (the first, unless told otherwise), or the CPU."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if num_gpus else torch.device("cpu")
    if device == "cpu":
        return torch.device("cpu")
    name, _, number = device.partition(":")
    if name != "cuda" or (number and not number.isdecimal()):
        raise UserError(f"device {device!r} is none of 'auto', 'cpu', 'cuda' and 'cuda:0', 'cuda:1', ...")
    if int(number or 0) >= num_gpus:
        raise UserError(
            f"device {device!r}: torch {torch.__version__} finds {num_gpus} CUDA devices here; take device='cpu', or "
            "'auto' for whatever there is"
        )
    return torch.device(f"cuda:{int(number or 0)}")


def pick_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision by its name; `auto` is bf16 where the device multiplies it in hardware, else fp32, and is told."""
    if precision not in get_args(Precision):
        raise UserError(f"precision {precision!r} is none of {', '.join(get_args(Precision))}")
    if precision == "auto":
        place = "GPU" if device.type == "cuda" else "CPU"
        if _multiplies_bf16(device):
            print(f"precision auto: bf16, which this {place} multiplies in hardware", file=sys.stderr)
            return "bf16"
        print(f"precision auto: fp32, as this {place} does not multiply bf16 in hardware", file=sys.stderr)
        return "fp32"
    return "bf16" if precision == "bf16" else "fp32"


def in_precision(
    encode: Callable[[Tensor], Tensor], precision: str, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """`encode` of rows that lie anywhere, computed on `device`, with bf16 arithmetic where `precision` says so."""

    def encoded(rows: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return encode(rows.to(device, non_blocking=True))  # from pinned memory

    return encoded


def kind_of(device: torch.device) -> str:
    """What of the device decides bits: `cpu AVX512`, `cuda NVIDIA H200`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{device.type} {name}"


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

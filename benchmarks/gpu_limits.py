"""Part of `benchmarks.gpu`: what the machine is, and what it does at best."""

import json
import sys

import torch

from benchmarks.measure import seconds_of
from clip_core.model.precision import pick_device


def main(is_tiny: bool) -> None:
    device = pick_device("auto").type
    facts: dict = {"torch": torch.__version__, "device": device}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"device": properties.name, "gib": properties.total_memory / 2**30, "cuda": torch.version.cuda}
    print(json.dumps(facts), flush=True)
    side = 256 if is_tiny else 8192
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds_of(lambda: one @ other, 3, device)  # to warm up
    seconds = seconds_of(lambda: one @ other, 10, device)
    print(json.dumps({"product": f"bf16, {side} wide", "tflops": 2 * side**3 / seconds[1] / 1e12}))
    numbers = torch.zeros(2**20 if is_tiny else 2**31, device=device)
    seconds = seconds_of(numbers.clone, 5, device)
    print(json.dumps({"copy": f"{numbers.nbytes / 2**30:.3g} GiB", "tb_per_s": 2 * numbers.nbytes / seconds[1] / 1e12}))


if __name__ == "__main__":
    main("--tiny" in sys.argv)

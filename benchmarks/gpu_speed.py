"""Part of `benchmarks.gpu`: pairs a second, MFU and peak memory of both stages of one model, setting by setting.

MFU as `clip_core.train.mfu` counts it, texts with the length that they have on average.
"""

import gc
import json
import sys
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import forget_peak, peak, seconds_of
from benchmarks.step import our_step, pixels_of
from clip_core.config.training import NoAugmentation, Torch
from clip_core.model.clip import CLIP, make_clip
from clip_core.model.contract import Architecture
from clip_core.model.costs import architecture_of
from clip_core.model.precision import pick_device
from clip_core.train.loop import compile_towers
from clip_core.train.mfu import forward_flops, peak_of_this_device
from clip_core.train.setup import Setup
from tests.tiny import tiny_training

LENGTHS = (9, 18)  # tokens of a caption, as in `benchmarks.data`
TINY = 256  # times smaller are the batches of a rehearsal


class Setting(NamedTuple):
    stage: int
    images: str  # live, cached
    batch: int
    micro_batch: int | None = None
    is_deterministic: bool = True
    is_compiled: bool = False  # it stays so: last


def _settings(batch: int, frozen: int, large: int, micro_batch: int) -> tuple[Setting, ...]:
    """What is surest first, as the time may not be enough for all."""
    return (
        Setting(2, "live", batch),
        Setting(1, "live", frozen),
        Setting(1, "cached", large),
        Setting(2, "live", batch, is_deterministic=False),
        Setting(2, "live", large, micro_batch),
        Setting(2, "live", 2 * batch),
        Setting(2, "live", batch, is_deterministic=False, is_compiled=True),
    )


SETTINGS = {"vit-b-16": _settings(512, 1024, 2048, 512), "vit-l-14": _settings(128, 512, 1024, 256)}


def main(name: str, is_tiny: bool) -> None:
    architecture = architecture_of("tiny" if is_tiny else name)
    clip = make_clip(architecture, seed=1)
    clip.to(pick_device("auto"))
    flops = _flops_of(architecture)
    for setting in SETTINGS[name]:
        if is_tiny:
            micro_batch = setting.micro_batch and setting.micro_batch // TINY
            setting = setting._replace(batch=max(setting.batch // TINY, 2), micro_batch=micro_batch)
        found = _measured(clip, setting, flops[setting.stage, setting.images], repeats=1 if is_tiny else 5)
        print(json.dumps({"model": name, **setting._asdict(), **found}), flush=True)
        gc.collect()
        torch.cuda.empty_cache()


def _measured(clip: CLIP, setting: Setting, flops: int, repeats: int) -> dict[str, Any]:
    """Figures of the setting; or why it has none, and the others shall have theirs."""
    device = clip.logit_scale.device.type
    forget_peak(device)
    try:
        start = time.perf_counter()
        if setting.is_compiled:
            compile_towers(clip)
        step = _step(clip, setting)
        seconds_of(step, 2, device)
        warm = time.perf_counter()
        seconds = seconds_of(step, repeats, device)
    except RuntimeError as error:  # out of memory, no deterministic kernel, no compiler
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    limit = peak_of_this_device()
    per_second = setting.batch / seconds[1]
    return {
        "pairs_per_s": per_second,
        "mfu": per_second * flops / limit if limit else None,
        "peak_gib": peak(device) / 2**30,
        "seconds": seconds,
        "warm_up_seconds": warm - start,
    }


def _step(clip: CLIP, setting: Setting) -> Any:
    changes: dict[str, Any] = {"precision": "bf16", "micro_batch": setting.micro_batch, "global_batch": setting.batch}
    changes["torch"] = Torch(tf32=False, compile=False, deterministic=setting.is_deterministic)
    if setting.images == "cached":
        changes["augmentation"] = NoAugmentation(name="none")
    clip.requires_grad_(True)  # whatever the setting before has frozen
    setup = Setup(tiny_training().model_copy(update=changes), 1, is_image_tower_frozen=setting.stage == 1)
    return our_step(clip, setup, pixels_of(setting.batch, clip.architecture.image_size), token_ids_of(setting.batch))


def _flops_of(architecture: Architecture) -> dict[tuple[int, str], int]:
    """(stage, images) -> of a step, for a pair."""
    image, text = forward_flops(architecture, sum(LENGTHS) // 2)
    return {(1, "cached"): 3 * text, (1, "live"): image + 3 * text, (2, "live"): 3 * (image + text)}


def token_ids_of(num: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    token_ids = torch.randint(1, 21_000, (num, LENGTHS[1]), generator=draw)
    lengths = torch.randint(LENGTHS[0], LENGTHS[1] + 1, (num, 1), generator=draw)
    return token_ids * (torch.arange(LENGTHS[1]) < lengths)


if __name__ == "__main__":
    main(sys.argv[1], "--tiny" in sys.argv)

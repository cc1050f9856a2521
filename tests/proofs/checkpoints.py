"""What checkpoints cost a training: ViT-B/16 and the built-in model; how long a step, a save and a resume take."""

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu_speed import LENGTHS, token_ids_of
from benchmarks.measure import seconds_of
from benchmarks.step import our_step, pixels_of
from clip_core.model.clip import make_clip
from clip_core.model.costs import architecture_of
from clip_core.train.average import Average
from clip_core.train.optimizer import make_optimizer
from clip_core.train.setup import Setup
from clip_core.train.state import Saver, resume
from tests.tiny import tiny_training

CASES = {"vit-b-16": (32, 50), "tiny": (128, 50)}  # model -> pairs a step, steps between saves, as in params.yaml
NUM_SAVES = 3


def prove() -> dict:
    return {name: measured(name, batch, every) for name, (batch, every) in CASES.items()}


def measured(name: str, batch: int, every: int) -> dict:
    """Seconds, min - median - max, and the share of the training's time that saves hold it up."""
    params = tiny_training().model_copy(update={"global_batch": batch})
    clip = make_clip(architecture_of(name), seed=1)
    optimizer = make_optimizer(clip, params.optimizer)
    setup = Setup(params, 1, is_image_tower_frozen=False)
    step = our_step(clip, setup, pixels_of(batch, clip.architecture.image_size), token_ids_of(batch), optimizer)
    step()
    average, steps = Average(clip, None), seconds_of(step, 3)
    with tempfile.TemporaryDirectory() as folder:
        work, held, written = Path(folder), [], []
        for number in range(1, NUM_SAVES + 1):
            begun = time.perf_counter()
            with Saver(work, every, clip, optimizer, average) as save:
                save(number)
                held.append(time.perf_counter() - begun)
            written.append(time.perf_counter() - begun)
        size = max(file.stat().st_size for file in work.glob("checkpoint-*"))
        fresh = make_optimizer(clip, params.optimizer)
        resumed = seconds_of(lambda: resume(work, clip, fresh, average), 3)
    median = sorted(held)[NUM_SAVES // 2]
    return {
        "pairs": batch,
        "words": LENGTHS,
        "step_seconds": rounded(steps),
        "save_holds_up_seconds": rounded(sorted(held)),
        "save_written_after_seconds": rounded(sorted(written)),
        "checkpoint_mib": round(size / 2**20, 1),
        "steps_between_saves": every,
        "share_of_training": round(median / (median + every * steps[1]), 5),
        "resume_seconds": rounded(resumed),
        "threads": torch.get_num_threads(),
    }


def rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]

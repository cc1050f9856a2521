"""A training step for real, in a process of its own: the peak of its memory beside what was planned.

`python -m tests.step_memory PRECISION MICRO_BATCH CHECKPOINTS MODEL BATCH` prints both in bytes; MICRO_BATCH 0 is null.
"""

import gc
import json
import subprocess
import sys
from pathlib import Path

import torch

from clip_core.config.model import ImageTower
from clip_core.data.batches import Batch
from clip_core.memory import give_back_freed_memory
from clip_core.model.clip import make_clip
from clip_core.model.contract import Architecture
from clip_core.model.costs import architecture_of
from clip_core.train.activations import checkpoint_activations
from clip_core.train.backward import backward
from clip_core.train.devices import KINDS
from clip_core.train.optimizer import make_optimizer
from clip_core.train.planned import Devices, Plan
from clip_core.train.setup import Setup
from tests.conftest import ROOT
from tests.tiny import tiny_training
from tests.variants import vit_architecture


def measured(precision: str, micro_batch: int | None, checkpoints: bool, model: str, batch: int) -> dict[str, int]:
    """Bytes `measured` and `planned` of a step in a new process."""
    arguments = [precision, str(micro_batch or 0), str(int(checkpoints)), model, str(batch)]
    command = [sys.executable, "-m", "tests.step_memory", *arguments]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def small_vit() -> Architecture:
    """A few layers, whose activations are many times the weights."""
    tiny = vit_architecture(dropout=0.1)
    options = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 512, "max_position_embeddings": 52}
    text = tiny.text_tower.model_copy(update={"options": {**tiny.text_tower.options, **options}})
    image = ImageTower(
        name="vit_base_patch16_clip_quickgelu_224",
        options={"embed_dim": 192, "depth": 4, "num_heads": 3, "patch_size": 8},
    )
    sizes = {"image_size": 96, "context_length": 52, "embed_dim": 128}
    return tiny.model_copy(update={"image_tower": image, "text_tower": text, **sizes})


def main(precision: str, micro_batch: int | None, checkpoints: bool, model: str, batch: int) -> dict[str, int]:
    architecture = small_vit() if model == "small" else architecture_of(model)
    changes = {"precision": precision, "micro_batch": micro_batch, "checkpoint_activations": checkpoints}
    params = tiny_training().model_copy(update={**changes, "global_batch": batch})
    setup = Setup(params, 1, is_image_tower_frozen=False)
    torch.use_deterministic_algorithms(True)
    give_back_freed_memory()
    steps(setup, vit_architecture(), 8)  # what is loaded on first use is no part of a step
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    steps(setup, architecture, batch)
    peak = resident("VmHWM") - before
    memory = Plan(setup, architecture, Devices(KINDS["cpu"], 1)).memory()
    memory["pictures"] //= 2  # no next batch is made here
    return {"measured": peak, "planned": sum(memory.values())}


def steps(setup: Setup, architecture: Architecture, batch: int) -> None:
    model = make_clip(architecture, 1).train()
    setup.lay_out(model)
    if setup.params.checkpoint_activations:
        checkpoint_activations(model)
    optimizer = make_optimizer(model, setup.params.optimizer)
    size = architecture.image_size
    pixels = torch.zeros(batch, 3, size, size, dtype=torch.uint8)
    made = Batch(pixels, torch.ones(batch, architecture.context_length, dtype=torch.int64))
    for seed in range(2):  # the moments are there from the second on
        backward(setup.params, model, model.encode_images, made, seed)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


if __name__ == "__main__":
    precision, micro_batch, checkpoints, model, batch = sys.argv[1:]
    print(json.dumps(main(precision, int(micro_batch) or None, checkpoints == "1", model, int(batch))))

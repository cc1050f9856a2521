"""A training step of both stages, in every mode, against cn_clip's own: its `get_loss`, backward and its AdamW.

Both sides have the same weights, pictures and captions, which cn_clip pads to 52 tokens as it always does. On the CPU
cn_clip computes in fp32: its mixed precision is for CUDA alone. The last row is ours against ours: a global batch in
chunks with the gradient of the whole, against batches of one chunk.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.command import read_options
from benchmarks.compare import compare, spread_of, workers
from benchmarks.data import captions
from benchmarks.loss import get_cn_clip_loss
from benchmarks.models import Model, model_at, prepare
from benchmarks.report import keep, machine, spread
from clip_core.config.loader import IN_PROCESS
from clip_core.config.training import NoAugmentation
from clip_core.data.batches import Batch
from clip_core.data.pictures import Kept
from clip_core.image import AS_RELEASED
from clip_core.memory import keep_freed_memory
from clip_core.model.clip import CLIP
from clip_core.model.precision import pick_device, pick_precision
from clip_core.model.weights import load_weights
from clip_core.text import load_tokenizer
from clip_core.train.backward import backward
from clip_core.train.optimizer import clip_gradients, make_optimizer, set_lr
from clip_core.train.setup import Setup
from tests.tiny import tiny_training

LR, CONTEXT_LENGTH = 1e-5, 52
CHUNK, NUM_CHUNKS = 64, 3
ROWS = [
    {"stage": stage, "images": images, "precision": precision}
    for stage, images in ((1, "live"), (1, "cached"), (2, "live"))
    for precision in ("fp32", "bf16")
]
IN_CHUNKS = f"{NUM_CHUNKS} chunks of {CHUNK} in one step / {NUM_CHUNKS} steps of {CHUNK}"


def main() -> None:
    options = read_options("step", repeats=3, batch=32, global_batch=12_800)
    shared = {"task": "step", "model": str(prepare(options.model, options.work)), "threads": options.threads}
    measured: dict[str, dict] = {}
    precision = pick_precision("auto", pick_device("auto"))
    for row in ROWS:
        name = f"stage {row['stage']} {row['images']} {row['precision']}, batch {options.batch} / cn_clip"
        if options.only not in name:
            continue
        if row["precision"] == "bf16" != precision:  # emulated, it is slower than fp32
            measured[name] = {"skipped": "this machine does not multiply bf16 in hardware"}
        else:
            spec = {**shared, **row, "batch": options.batch}
            found = compare({**spec, "side": "ours"}, {**spec, "side": "cn_clip"}, options.repeats)
            measured[name] = {"num": options.batch, **found}
            print(f"{name}: {spread(found['ratio'])} times as fast", flush=True)
    if options.only in (name := f"stage 2 {precision}, {IN_CHUNKS}"):
        spec = {**shared, "stage": 2, "images": "live", "precision": precision, "side": "ours"}
        measured[name] = _in_chunks(spec, options.repeats, options.global_batch)
        times = spread(measured[name]["times_per_sample"])
        print(f"a global batch of {options.global_batch:,}, extrapolated: {times} times as long a sample", flush=True)
    result = {"model": options.model, **machine(options.threads), "rows": measured}
    # rows that were asked for alone replace no others
    name = "-".join(["step", options.model, str(options.batch), *options.only.split()])
    keep(name, result, options.results)


def _in_chunks(spec: dict, repeats: int, global_batch: int) -> dict:
    """A few chunks, and the loss of the whole global batch, which is all that grows faster than its rows."""
    ours = {**spec, "batch": CHUNK * NUM_CHUNKS, "micro_batch": CHUNK}
    found = compare(ours, {**spec, "batch": CHUNK, "num_steps": NUM_CHUNKS}, repeats)
    with workers({**spec, "task": "loss", "num": global_batch}) as ((worker,), _):
        of_loss = worker.seconds() / global_batch
    plain = found["peer_seconds"][1] / (CHUNK * NUM_CHUNKS)
    times = spread_of([1 / ratio + of_loss / plain for ratio in found["ratio"]])
    return {"num": CHUNK * NUM_CHUNKS, **found, "extrapolated_to": global_batch, "times_per_sample": times}


def make(spec: dict) -> Callable[[], np.ndarray]:
    """A step, or as many as `num_steps` says, in each run; the loss, which the first run has from the same weights."""
    model = model_at(spec["model"])
    if spec["side"] == "ours":
        keep_freed_memory()  # as a training does that needs no more than half of the machine's memory
    step = (_ours if spec["side"] == "ours" else _cn_clip)(model, spec, captions(model.tokenizer, spec["batch"]))
    return lambda: np.array([step() for _ in range(spec.get("num_steps", 1))][-1])


def _ours(model: Model, spec: dict, texts: list[str]) -> Callable[[], float]:
    clip = load_weights(model.weights)
    token_ids = torch.from_numpy(load_tokenizer(model.tokenizer, CONTEXT_LENGTH)(texts))
    changes = {"precision": spec["precision"], "micro_batch": spec.get("micro_batch"), "global_batch": len(texts)}
    if spec["images"] == "cached":
        changes["augmentation"] = NoAugmentation(name="none")
    setup = Setup(tiny_training().model_copy(update=changes), seed=1, is_image_tower_frozen=spec["stage"] == 1)
    return our_step(clip, setup, pixels_of(len(texts), clip.architecture.image_size), token_ids)


def our_step(
    clip: CLIP, setup: Setup, pixels: Tensor, token_ids: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> Callable[[], float]:
    """A step as `clip_core.train.loop` takes it, always of the same pairs; it gives the loss."""
    clip.to(pick_device("auto")).image_tower.to(memory_format=torch.channels_last)
    pictures, encode_images = setup.prepare(clip, Kept(pixels, {}), IN_PROCESS)
    images = pictures(np.arange(len(pixels)))
    if setup.sees_features:
        with torch.no_grad():
            images, encode_images = encode_images(images.to(pick_device("auto"))).cpu(), lambda stored: stored
    batch = Batch(images, token_ids)
    if torch.cuda.is_available():  # as the loader does
        batch = Batch(batch.images.pin_memory(), token_ids.pin_memory())
    optimizer = optimizer or make_optimizer(clip.train(), setup.params.optimizer)
    set_lr(optimizer, LR)

    def step() -> float:
        loss = backward(setup.params, clip.train(), encode_images, batch, seed=1)
        norm = clip_gradients(clip, setup.params.optimizer.max_grad_norm)
        number, _ = torch.stack([loss.float(), norm.float()]).tolist()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clip.clamp_logit_scale()
        return number

    return step


def _cn_clip(model: Model, spec: dict, texts: list[str]) -> Callable[[], float]:
    """The body of its `training.train.train`; its `training.main` makes the same groups for AdamW."""
    from cn_clip import clip as cn_clip

    net, _ = model.load_in_cn_clip("cpu")
    net.float().train()
    if spec["stage"] == 1:
        net.visual.requires_grad_(False)
    token_ids = cn_clip.tokenize(texts, context_length=CONTEXT_LENGTH)
    side = int(net.visual.input_resolution)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (AS_RELEASED.mean, AS_RELEASED.std))
    images = (pixels_of(len(texts), side) / 255 - mean) / std
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    plain = {name for name in trained if any(part in name for part in ("bn", "ln", "bias", "logit_scale"))}
    groups = [
        {"params": [trained[name] for name in trained if name in plain], "weight_decay": 0.0},
        {"params": [trained[name] for name in trained if name not in plain], "weight_decay": 0.05},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-6)

    def step() -> float:
        optimizer.zero_grad()
        loss = get_cn_clip_loss(net, images, token_ids)
        loss.backward()
        optimizer.step()
        net.logit_scale.data = torch.clamp(net.logit_scale.data, 0, 4.6052)
        return loss.item()

    return step


def pixels_of(num: int, side: int) -> Tensor:
    """Random pictures."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=draw)


if __name__ == "__main__":
    main()

"""Trains small models as one of several ranks: `python -m tests.ranks FOLDER CASE ...`, under a launcher or alone."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file

from clip_core.config.loader import IN_PROCESS
from clip_core.config.stage2 import Distill, Lora
from clip_core.config.train import Train
from clip_core.config.training import Loss, Training
from clip_core.data.batches import NOTHING, TrainingBatches
from clip_core.data.pictures import decoded
from clip_core.data.store import open_store
from clip_core.env import set_switches
from clip_core.errors import told_to_the_user
from clip_core.image import Preprocessing
from clip_core.model.clip import CLIP, make_clip
from clip_core.text import parse_tokenizer
from clip_core.train import heartbeat
from clip_core.train.distributed import agree, barrier, gathered_model, num_ranks, process_group, rank
from clip_core.train.loop import train
from clip_core.train.setup import Setup
from clip_core.train.watch import RECALL, Validation
from tests.tiny import IMAGE_SIZE, INTERVAL, tiny_tokenizer_json, tiny_training
from tests.variants import vit_architecture

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Case:
    """How a training differs from the plain one."""

    params: dict = field(default_factory=dict)
    is_image_tower_frozen: bool = False
    lora: Lora | None = None
    widths: tuple[int, ...] = ()
    sharded: bool = False
    distill: Distill | None = None


START = Case({"schedule": tiny_training().schedule.model_copy(update={"num_steps": 0, "warmup_steps": 0})})
COSINE = Distill(weights="teacher", images=True, texts=True, loss="cosine", weight=2.0)
RELATION = COSINE.model_copy(update={"loss": "relation", "weight": 0.2})
GENTLE = tiny_training(num_steps=6).schedule.model_copy(update={"peak_lr": 0.03})  # or rounding grows too fast
CASES = {
    "plain": Case(),
    "gradient caching, averaged": Case({"micro_batch": 1, "ema_decay": 0.7}),
    "stage 1": Case(is_image_tower_frozen=True),
    "stage 1, gradient caching": Case({"micro_batch": 1}, is_image_tower_frozen=True),
    "LoRA": Case(lora=Lora(rank=2, alpha=4, dropout=0.0)),
    "Matryoshka": Case(widths=(4, 2)),
    "sigmoid": Case({"loss": Loss(name="sigmoid", positives="pair")}),
    "kin": Case({"loss": Loss(name="contrastive", positives="group"), "global_batch": 32}),
    "sharded": Case(sharded=True),
    "sharded, gradient caching, averaged": Case({"micro_batch": 1, "ema_decay": 0.7}, sharded=True),
    "activations computed again": Case({"checkpoint_activations": True}),
    "distillation": Case({"micro_batch": 2}, distill=COSINE),
    "distillation by relation": Case({"schedule": GENTLE}, distill=RELATION),
    "sharded, distillation": Case(distill=COSINE, sharded=True),
}


def params_of(case: Case) -> Training:
    """A large `eps` makes AdamW's steps go with the gradient, not with its sign, which the last bit may turn."""
    params = tiny_training(num_steps=6)
    schedule = params.schedule.model_copy(update={"peak_lr": 0.3})
    optimizer = params.optimizer.model_copy(update={"eps": 0.01, "weight_decay": 0.001})
    return params.model_copy(update={"schedule": schedule, "optimizer": optimizer} | case.params)


def trained(case: Case, store_folder: Path, work: Path) -> None:
    """Trains the case and, on rank 0, writes the weights to `work`."""
    store, params = open_store(store_folder), params_of(case)
    tokenizer_json = tiny_tokenizer_json(store)
    architecture = vit_architecture(tokenizer_json, dropout=0.0).model_copy(update={"matryoshka": case.widths})
    model, pictures = make_clip(architecture, 1), decoded(store, IMAGE_SIZE, Preprocessing())
    files = store_folder.parent
    setup = Setup(params, 1, case.is_image_tower_frozen, lora=case.lora, distill=case.distill, files=files)
    images, encode = setup.prepare(model, pictures, IN_PROCESS)
    teacher = setup.teacher(model, store, IN_PROCESS)
    shown, tokenizer = teacher.shown if teacher else NOTHING, parse_tokenizer(tokenizer_json, 16)
    on = Train(devices=num_ranks(), tensorboard=False, sharded=case.sharded)
    with TrainingBatches(store, images, tokenizer, params, 1, IN_PROCESS, rank(), num_ranks(), shown) as batches:
        train(batches, model, encode, work, INTERVAL, Validation(3, measure), on, teacher)
    model.teacher_projection = None
    model = gathered_model(model)
    if rank() == 0:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, work / WEIGHTS)


@torch.inference_mode()  # as the recall is measured
def measure(model: CLIP) -> dict[str, float]:
    return {RECALL: float(model.encode_texts(torch.tensor([[2, 4, 3]])).sum() * model.logit_scale)}


def stop_one() -> None:
    """Rank 1 falls silent as a host that is cut off, and rank 0 waits for it; then it may be ended."""
    if rank():
        subprocess.Popen(["sh", "-c", f"sleep 10; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    barrier()


def main(folder: Path, names: list[str]) -> None:
    if names == ["disagree"]:
        agree(f"the params of rank {rank()}")
    if names == ["fall silent"]:
        stop_one()
    for name in names:
        work = folder / f"{name} on {num_ranks()}" / "run"
        work.mkdir(parents=True, exist_ok=True)
        trained(START if name == "start" else CASES[name], folder / "store", work)
        print(f"{name}: done", flush=True)


if __name__ == "__main__":
    set_switches()
    if sys.argv[2:] == ["fall silent"]:
        heartbeat.EVERY, heartbeat.SILENCE = timedelta(seconds=0.2), timedelta(seconds=4)
    with told_to_the_user(), process_group():
        main(Path(sys.argv[1]), sys.argv[2:])

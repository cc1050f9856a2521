"""Our training step learns as the reference's: its `get_loss`, backward and its AdamW, on the same pairs."""

from argparse import Namespace
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from benchmarks.data import captions
from benchmarks.models import SMALL, Model, model_at, prepare
from benchmarks.step import LR, our_step, pixels_of
from clip_core.config.training import NoAugmentation
from clip_core.image import AS_RELEASED
from clip_core.model.weights import load_weights
from clip_core.text import load_tokenizer
from clip_core.train.setup import Setup
from tests.test_benchmarks import run_here
from tests.tiny import tiny_training

BATCH, CONTEXT_LENGTH = 8, 52


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    with pytest.MonkeyPatch.context() as context:
        context.setattr("benchmarks.models._run", lambda _python, _m, *command: run_here(*command))
        return model_at(prepare(SMALL, tmp_path_factory.mktemp("models")))


@pytest.mark.parametrize(("stage", "images"), [(1, "live"), (1, "cached"), (2, "live")])
def test_without_dropout_both_sides_steps_learn_alike(
    stage: int, images: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = torch.nn.Module.train
    with monkeypatch.context() as context:
        context.setattr(torch.nn.Module, "train", lambda module, mode=True: train(module, False))
        ours, theirs = our(model, stage, images), cn_clips(model, stage)
        losses = [(ours(), theirs()) for _ in range(3)]
    assert losses[0][0] > losses[1][0] > losses[2][0]
    assert losses[0][0] == pytest.approx(losses[0][1], abs=1e-4)
    assert losses[2][0] == pytest.approx(losses[2][1], abs=0.01)  # they decay other parameters


def our(model: Model, stage: int, images: str) -> Callable[[], float]:
    clip, texts = load_weights(model.weights), captions(model.tokenizer, BATCH)
    token_ids = torch.from_numpy(load_tokenizer(model.tokenizer, CONTEXT_LENGTH)(texts))
    changes = {"micro_batch": None, "global_batch": BATCH}
    if images == "cached":
        changes["augmentation"] = NoAugmentation(name="none")
    setup = Setup(tiny_training().model_copy(update=changes), seed=1, is_image_tower_frozen=stage == 1)
    return our_step(clip, setup, pixels_of(BATCH, clip.architecture.image_size), token_ids)


def cn_clips(model: Model, stage: int) -> Callable[[], float]:
    """The body of its `training.train.train`; its `training.main` makes the same groups for AdamW."""
    from cn_clip import clip as cn_clip

    net, _ = model.load_in_cn_clip("cpu")
    net.float().train()
    if stage == 1:
        net.visual.requires_grad_(False)
    token_ids = cn_clip.tokenize(captions(model.tokenizer, BATCH), context_length=CONTEXT_LENGTH)
    side = int(net.visual.input_resolution)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (AS_RELEASED.mean, AS_RELEASED.std))
    images = (pixels_of(BATCH, side) / 255 - mean) / std
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    plain = {name for name in trained if any(part in name for part in ("bn", "ln", "bias", "logit_scale"))}
    groups = [
        {"params": [trained[name] for name in trained if name in plain], "weight_decay": 0.0},
        {"params": [trained[name] for name in trained if name not in plain], "weight_decay": 0.05},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-6)

    def step() -> float:
        optimizer.zero_grad()
        loss = reference_loss(net, images, token_ids)
        loss.backward()
        optimizer.step()
        net.logit_scale.data = torch.clamp(net.logit_scale.data, 0, 4.6052)
        return loss.item()

    return step


def reference_loss(model: Callable[..., tuple], images: Tensor, texts: Tensor) -> Tensor:
    """`get_loss` of the reference's training with its defaults: one rank on gloo; on the CPU, where it demands CUDA."""
    import torch.distributed as dist
    from cn_clip.training.train import get_loss

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    options = {"accum_freq": 1, "mask_ratio": 0, "distillation": False, "report_training_batch_acc": False}
    ranks = {"aggregate": True, "gather_with_grad": False, "local_device_rank": 0}
    with patch.object(Tensor, "cuda", lambda tensor, *_, **__: tensor):
        loss, _ = get_loss(model, images, texts, *(nn.CrossEntropyLoss() for _ in "it"), Namespace(**options, **ranks))
    return loss

"""What a training needs of its devices: memory by part, the micro batch that fits, seconds. Nothing is allocated.

Memory is that of the step as `clip_core.train.backward` runs it, with all texts of full length: captions that are
shorter take less. Time is arithmetic and what devices send one another, one after the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from clip_core.model.contract import WEIGHTS_FILE, Architecture
from clip_core.model.costs import on_meta
from clip_core.train.activations import checkpoint_activations
from clip_core.train.devices import Device
from clip_core.train.feature_cache import AT_ONCE
from clip_core.train.footprint import Course, Footprint, footprints
from clip_core.train.loss import LOGITS_AT_ONCE
from clip_core.train.optimizer import layers_of
from clip_core.train.setup import Setup

FP32 = 4  # bytes of a number
LOSS, IN = "features and loss", {side: f"activations, {side} side" for side in ("image", "text")}
LARGEST_MICRO_BATCH = 1024  # a larger one is no faster


@dataclass(frozen=True)
class Devices:
    """Where a training runs."""

    kind: Device
    num: int
    is_sharded: bool = False  # weights, gradients and moments in as many parts (FSDP), or all of them on each

    @property
    def num_shards(self) -> int:
        return self.num if self.is_sharded else 1


@dataclass(frozen=True)
class Plan:
    """A training on some devices."""

    setup: Setup
    architecture: Architecture
    devices: Devices

    @property
    def local_batch(self) -> int:
        return -(-self.setup.params.global_batch // self.devices.num)

    def with_micro_batch(self, rows: int | None, checkpoints: bool | None = None) -> "Plan":
        """The same in other portions; with activation checkpoints, without, or as before."""
        params = self.setup.params
        checkpoints = params.checkpoint_activations if checkpoints is None else checkpoints
        params = params.model_copy(update={"micro_batch": rows, "checkpoint_activations": checkpoints})
        return replace(self, setup=replace(self.setup, params=params))

    def memory(self) -> dict[str, int]:
        """Bytes by part on each device, at the moment of a step when they are most."""
        image, text = sides_of(self.setup, self.architecture)
        params, num_shards = self.setup.params, self.devices.num_shards
        teacher = self.setup.teacher_folder
        held = {
            "weights": FP32 * (image.parameters + text.parameters) // num_shards,
            "AdamW's moments": 2 * FP32 * (image.trained + text.trained) // num_shards,
            "pictures": self._pictures(),
            "teacher": (teacher / WEIGHTS_FILE).stat().st_size if teacher else 0,
        }
        if params.ema_decay:
            held["weights' average"] = FP32 * (image.trained + text.trained) // num_shards
        if self.devices.is_sharded and self.devices.num > 1:
            held["one block whole"] = 2 * FP32 * _largest_block(self.architecture)
        most = max(self._moments(image, text), key=lambda parts: sum(parts.values()))
        return {**held, **most} if params.schedule.num_steps != 0 else {"weights": held["weights"]}

    def fits(self) -> bool:
        return sum(self.memory().values()) <= self.devices.kind.memory

    def that_fits(self) -> "Plan | None":
        """This one, or the same with the largest `micro_batch` that fits, with activation checkpoints if it must be."""
        if self.fits():
            return self
        for checkpoints in (self.setup.params.checkpoint_activations, True):
            for rows in range(min(self.local_batch, LARGEST_MICRO_BATCH), 0, -1):
                if self.local_batch % rows == 0 and (plan := self.with_micro_batch(rows, checkpoints)).fits():
                    return plan
        return None

    def seconds(self) -> float:
        """Of a step."""
        image, text = sides_of(self.setup, self.architecture)
        params, num = self.setup.params, self.devices.num
        portions = -(-self.local_batch // (params.micro_batch or self.local_batch))
        forwards = 1 if params.micro_batch is None else 2  # gradient caching computes the features twice
        flops = forwards * text.flops[0] + text.flops[1]
        if not self.setup.sees_features:
            flops += (forwards if image.trained else 1) * image.flops[0] + image.flops[1]
        sent = 2.0 * (image.trained + text.trained)  # gradients, scattered and gathered
        if self.devices.is_sharded:  # gradients scattered; weights gathered in each forward and backward pass
            sent = sent / 2 + (image.parameters + text.parameters) * portions * (forwards + 1)
        arithmetic = self.local_batch * flops / self.devices.kind.flops[params.precision]
        return arithmetic + FP32 * sent * (num - 1) / num / self.devices.kind.link

    def _pictures(self) -> int:
        """Of the local batch: on a CPU with the next one, made ahead; on a GPU those that were just sent there."""
        size, params = self.architecture.image_size, self.setup.params
        row = FP32 * self.architecture.embed_dim if self.setup.sees_features else 3 * size**2
        if self.devices.kind.is_cpu:
            return 2 * self.local_batch * row
        return min(self.local_batch, params.micro_batch or self.local_batch) * row

    def _moments(self, image: Footprint, text: Footprint) -> Iterator[dict[str, int]]:
        """The parts in each phase of a step when they are most, phase by phase."""
        num_shards, micro_batch = self.devices.num_shards, self.setup.params.micro_batch
        rows = min(self.local_batch, micro_batch or self.local_batch)

        def during(side: str, course: Course, before: dict[str, int], is_first: bool = True) -> dict[str, int]:
            activations, gradients = course.peak(rows, num_shards, is_first)
            return {**before, IN[side]: activations, "gradients": before.get("gradients", 0) + gradients}

        def gradients_of(*sides: Footprint) -> dict[str, int]:
            return {"gradients": FP32 * sum(side.trained for side in sides) // num_shards}

        if not image.trained:
            encoded = AT_ONCE if self.setup.sees_features else rows  # the former once, before the first step
            yield {IN["image"]: image.forward.peak(encoded)[0]}
        if micro_batch is None:
            kept = {IN["image"]: image.kept_of(rows)}
            yield during("text", text.forward, kept)
            yield {**kept, IN["text"]: text.kept_of(rows), LOSS: self._loss()}
            yield during("text", text.backward, kept)  # first, as its forward pass was the later
            if image.trained:
                yield during("image", image.forward, {})
                yield during("image", image.backward, gradients_of(text))
            return
        yield {LOSS: self._loss()}
        features, is_first = {LOSS: self._features()}, rows == self.local_batch
        if image.trained:
            yield during("image", image.forward, features if is_first else features | gradients_of(image))
            yield during("image", image.backward, features, is_first)
        before = features | gradients_of(image)
        yield during("text", text.forward, before if is_first else features | gradients_of(image, text))
        yield during("text", text.backward, before, is_first)

    def _features(self) -> int:
        """Of the global batch, on each device, with their gradients."""
        return 2 * 2 * FP32 * self.setup.params.global_batch * self.architecture.embed_dim

    def _loss(self) -> int:
        params, widths = self.setup.params, (self.architecture.embed_dim, *self.architecture.matryoshka)
        return self._features() + loss_at_once(params.global_batch, widths)


def loss_at_once(global_batch: int, widths: tuple[int, ...]) -> int:
    """The bytes that the loss takes beside the features, at most: blocks of logits, gradients, narrower features."""
    one_side, narrower = FP32 * global_batch * widths[0], FP32 * global_batch * sum(widths[1:])
    block = FP32 * min(max(LOGITS_AT_ONCE, global_batch), global_batch**2)
    return max(2 * one_side + 4 * block, 3 * one_side + 2 * block) + 4 * narrower


_sides: dict[tuple, tuple[Footprint, Footprint]] = {}  # as counting takes seconds


def sides_of(setup: Setup, architecture: Architecture) -> tuple[Footprint, Footprint]:
    """What the image and the text side keep and compute in this training."""
    params = setup.params
    key = (
        architecture.model_dump_json(),
        setup.is_image_tower_frozen,
        setup.patch_dropout,
        setup.lora,
        params.checkpoint_activations,
        params.precision,
    )
    if key not in _sides:
        model = on_meta(architecture)
        setup.lay_out(model)
        if params.checkpoint_activations:
            checkpoint_activations(model)
        _sides[key] = footprints(model, params.precision == "bf16")
    return _sides[key]


def _largest_block(architecture: Architecture) -> int:
    """Parameters of the largest module among those that repeat, and of the embeddings."""
    model = on_meta(architecture)
    blocks = [layer for tower in (model.image_tower, model.text_tower) for layer in layers_of(tower)]
    blocks += [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return max(sum(parameter.numel() for parameter in block.parameters()) for block in blocks)

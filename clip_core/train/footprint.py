"""What a tower keeps in memory while it trains, moment by moment, and what it computes: counted without a number.

The tower itself runs, on torch's fake tensors: they have shapes and lifetimes, and no memory. So fused attention, bf16
arithmetic, activation checkpoints, dropped patches, adapters and a frozen tower count as what they are. It runs as on
a CPU; on a GPU the same tensors live, but for BERT's attention with dropout, which is fused there and keeps less.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from clip_core.model.clip import CLIP

ROWS = (4, 8)  # all is linear in the number of rows, so two numbers of them give any other


@dataclass(frozen=True)
class Course:
    """Bytes that are alive at each moment of a pass over some rows."""

    fixed: np.ndarray  # (moments,)
    per_row: np.ndarray
    gradients: np.ndarray  # of parameters, apart

    def peak(self, rows: int, num_shards: int = 1, is_first: bool = True) -> tuple[int, int]:
        """Activations and gradients when both are most, where of `num_shards` parts of each gradient one is here.

        In a pass that is not the first, all gradients are there already, and each new one until it is added.
        """
        activations, gradients = self.fixed + self.per_row * rows, self.gradients
        if not is_first:
            activations, gradients = activations + np.diff(gradients, prepend=0), np.full_like(gradients, gradients[-1])
        most = int((activations + gradients / num_shards).argmax())
        return int(activations[most]), int(gradients[most] / num_shards)


@dataclass(frozen=True)
class Footprint:
    """One tower with its projection, in training."""

    parameters: int
    trained: int  # of them; 0: it is frozen, and a forward pass is all
    forward: Course
    backward: Course
    kept: tuple[float, float]  # between the two: bytes, and bytes a row
    flops: tuple[float, float]  # a row: forward, and backward with what activation checkpoints compute again

    def kept_of(self, rows: int) -> int:
        return int(self.kept[0] + self.kept[1] * rows)


def footprints(model: CLIP, is_bf16: bool) -> tuple[Footprint, Footprint]:
    """Those of the image and the text side of `model`, which lies on torch's meta device, laid out for training."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        model.to_empty(device="cpu").train()
        return _footprint(model, "image", is_bf16), _footprint(model, "text", is_bf16)


def _footprint(model: CLIP, side: str, is_bf16: bool) -> Footprint:
    own = [parameter for name, parameter in model.named_parameters() if name.startswith(side)]
    trained = sum(parameter.numel() for parameter in own if parameter.requires_grad)
    few, many = (_passes(model, side, rows, is_bf16, trained > 0) for rows in ROWS)
    courses = [_through(*both) for both in zip(few.courses, many.courses, strict=True)]
    per_row = (many.kept - few.kept) / (ROWS[1] - ROWS[0])
    kept = few.kept - per_row * ROWS[0], per_row
    flops = many.flops[0] / ROWS[1], many.flops[1] / ROWS[1]
    return Footprint(sum(parameter.numel() for parameter in own), trained, *courses, kept, flops)


@dataclass(frozen=True)
class _Passes:
    """What was seen with a number of rows."""

    courses: list[tuple[np.ndarray, np.ndarray]]  # of each pass: all, and the gradients among it
    kept: int
    flops: tuple[int, int]


def _passes(model: CLIP, side: str, rows: int, is_bf16: bool, trains: bool) -> _Passes:
    encode = _encoder(model, side, rows, is_bf16)
    model.get_submodule(f"{side}_tower").train(trains)  # a frozen tower computes as in use
    with Live([*model.parameters(), *model.buffers()]) as live, torch.set_grad_enabled(trains):
        features = encode()
        kept, forward, forward_flops = live.now, live.ended(), live.flops
        if trains:
            features.backward(torch.empty_like(features))
        backward = live.ended()
    model.zero_grad(set_to_none=True)
    return _Passes([forward, backward], kept, (forward_flops, live.flops - forward_flops))


def _encoder(model: CLIP, side: str, rows: int, is_bf16: bool) -> Callable[[], Tensor]:
    """A forward pass as `clip_core.train.backward` makes it, all texts of full length."""
    size, length = model.architecture.image_size, model.architecture.context_length
    pixels = torch.zeros(rows, 3, size, size, dtype=torch.uint8)
    token_ids = torch.ones(rows, length, dtype=torch.int64)

    def encode() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            if side == "image":
                return model.encode_images(pixels)
            return torch.cat([model.encode_texts(half) for half in token_ids.chunk(2)])

    return encode


class Live(TorchDispatchMode):
    """Notes the bytes of all tensors that are alive, whenever one is made, but for those of before; and FLOPs."""

    def __init__(self, before: list[Tensor]) -> None:
        super().__init__()
        self.now = self.flops = 0
        self._before = before
        self._moments, self._ended = [0], 0
        self._born = {tensor.untyped_storage()._cdata: 0 for tensor in before}

    @property
    def most(self) -> int:
        return max(self._moments)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._born:
                self._born[storage._cdata] = len(self._moments)
                self.now += storage.nbytes()
                self._moments.append(self.now)
                weakref.finalize(storage, self._died, storage._cdata, storage.nbytes())
        return result

    def ended(self) -> tuple[np.ndarray, np.ndarray]:
        """All bytes at each moment since this was last called, and the gradients among them."""
        gradients = np.zeros(len(self._moments))
        for tensor in self._before:
            if tensor.grad is not None:
                storage = tensor.grad.untyped_storage()
                gradients[self._born[storage._cdata]] += storage.nbytes()
        since = slice(self._ended, None)
        self._ended = len(self._moments)
        self._moments.append(self.now)  # what the next pass begins with
        return np.array(self._moments[since][:-1]), np.cumsum(gradients)[since]

    def _died(self, key: int, num_bytes: int) -> None:
        del self._born[key]
        self.now -= num_bytes


def _through(few: tuple[np.ndarray, np.ndarray], many: tuple[np.ndarray, np.ndarray]) -> Course:
    """The line through what two numbers of rows have at each moment."""
    assert len(few[0]) == len(many[0]), "more rows are larger tensors, not more of them"
    per_row = (many[0] - few[0]) / (ROWS[1] - ROWS[0])
    return Course(few[0] - per_row * ROWS[0] - few[1], per_row, few[1])

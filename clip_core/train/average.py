"""An average of the weights over the steps, which is measured and published in their place."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of the parameters that train; running statistics are the last ones.

    Its decay rises to `decay` on the way, min(decay, (1 + step) / (10 + step)), so that a short training does not stay
    at its start. Without a decay there is no average.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self._decay = decay or 0.0
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad] if decay else []
        self._parameters = [parameter for _, parameter in trained]
        self._averages = [parameter.detach().clone() for parameter in self._parameters]
        self._names = [name for name, _ in trained]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after `step` in."""
        if self._parameters:
            share = 1 - min(self._decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._averages, [parameter.detach() for parameter in self._parameters], share)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """The model has the average while the block runs, and then its own weights again."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the model's weights and the average, tensor by tensor."""
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            own = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(own)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """What a checkpoint holds of it."""
        return ((f"average.{name}", tensor) for name, tensor in zip(self._names, self._averages, strict=True))

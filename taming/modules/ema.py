"""A moving average of a model's weights beside them, as latent diffusion's first stages keep it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """The averages of all trained parameters: a <- d a + (1 - d) p, with the decay d.

    Early on d is (1 + n) / (10 + n) after n updates, as an average of few values should not hold on
    to the first. Buffers have the parameters' names without dots.
    """

    decay: Tensor
    num_updates: Tensor

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        super().__init__()
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int))
        self.include(model)

    def include(self, model: nn.Module) -> None:
        """Begin averages of those parameters that have none yet."""
        for name, parameter in _trained(model):
            if name not in self._buffers:
                self.register_buffer(name, parameter.detach().clone())

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Follow the model's parameters, once after every update."""
        self.num_updates += 1
        decay = torch.minimum(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in _trained(model):
            self.get_buffer(name).lerp_(parameter, (1 - decay).to(parameter))

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Begin again from the model's parameters, which were loaded, and may be frozen by now."""
        self.num_updates.zero_()
        for name, parameter in model.named_parameters():
            if (average := self._buffers.get(name.replace(".", ""))) is not None:
                average.copy_(parameter)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Let the model have the averages while the context lasts."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, parameter in _trained(model):
            average = self.get_buffer(name)
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name.replace(".", ""), parameter

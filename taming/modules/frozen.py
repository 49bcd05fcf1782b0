"""Networks of others that a module uses and does not own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Frozen:
    """A network that is neither trained nor saved, averaged or synchronized with what uses it.

    It is no sub-module therefore. `load` makes it, when it is needed for the first time, be it in
    inference mode, whose tensors no later step of training could differentiate through.
    """

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        self._load = load
        self._network: nn.Module | None = None

    def prepare(self) -> nn.Module:
        """The network, which is loaded if it was not."""
        if self._network is None:
            with torch.inference_mode(False):
                self._network = self._load().eval().requires_grad_(False)
        return self._network

    def beside(self, x: Tensor) -> nn.Module:
        """The network on the device and in the dtype of `x`."""
        network = self.prepare()
        weight = next(network.parameters())
        if (weight.device, weight.dtype) != (x.device, x.dtype):
            with torch.inference_mode(False):
                network.to(x.device, x.dtype)
        return network

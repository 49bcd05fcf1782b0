"""Options by which a first stage trains faster or in less memory; all of them are off by default.

Without them, a step follows the published one to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import nn
from torch.optim import Optimizer

from taming.modules.diffusionmodules.model import Level, Middle
from taming.modules.losses.base import FirstStageLoss


class TrainingOptions(TypedDict, total=False):
    """Parameters of a first stage that decide how it trains, not what it is."""

    reuse_reconstruction: bool
    compile: bool
    channels_last: bool
    checkpoint_activations: bool
    fused_optimizer: bool


@dataclass(frozen=True)
class TrainingWays:
    """The options' meanings.

    Attributes:
        reuse_reconstruction: the discriminator sees what the autoencoder made of the batch before
            its update, not after it: one pass of the autoencoder less.
        compile: the blocks of encoder and decoder, LPIPS and the discriminator by torch.compile.
        channels_last: weights and images with the channels side by side in memory, as
            convolutions of reduced precision want them.
        checkpoint_activations: blocks of encoder and decoder keep their inputs alone, and are run
            again in the backward pass: less memory, a third of a pass more.
        fused_optimizer: Adam's update in one kernel; rounds differently.
    """

    reuse_reconstruction: bool = False
    compile: bool = False
    channels_last: bool = False
    checkpoint_activations: bool = False
    fused_optimizer: bool = False

    def prepare(self, model: nn.Module) -> None:
        """Make a model ready to train in these ways; once, when training starts."""
        for blocks in _blocks(model):
            blocks.checkpoints = self.checkpoint_activations
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        if self.compile:
            # The adaptive weight takes gradients of two losses by one graph.
            torch._functorch.config.donated_buffer = False
            # The compiler makes no backward pass of a backward pass, of which a penalty needs one.
            loss = model.loss
            twice = isinstance(loss, FirstStageLoss) and loss.differentiates_twice
            for part in (*_blocks(model), *_networks_of_loss(model, discriminator=not twice)):
                part.compile(dynamic=False)  # a graph for each of the few sizes

    def prepare_states(self, optimizers: Sequence[Optimizer]) -> None:
        """Lay the states that were resumed out in memory as the parameters are."""
        for optimizer in optimizers if self.fused_optimizer or self.channels_last else ():
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if value.shape == parameter.shape and value.stride() != parameter.stride():
                        state[name] = torch.empty_like(parameter).copy_(value)


def _blocks(model: nn.Module) -> Iterator[Level | Middle]:
    """Where nearly all of the time goes. The decoder's last convolution is none of them: gradients
    are taken at it alone."""
    for module in model.modules():
        if isinstance(module, Level | Middle):
            yield module


def _networks_of_loss(model: nn.Module, *, discriminator: bool) -> list[nn.Module]:
    children = dict(model.named_modules())
    names = ["loss.perceptual_loss", *["loss.discriminator"] * discriminator]
    return [children[name] for name in names if name in children]

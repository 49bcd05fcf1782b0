"""Options by which models train faster or in less memory; all of them are off by default.

Without them, a step follows the published one to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from taming.config_values import FilePath, Fraction
from taming.errors import UserError
from taming.modules import magvit2, maskgit
from taming.modules.diffusionmodules.model import Decoder, Encoder, Level, Middle
from taming.modules.gpu_kernels import runs_triton
from taming.modules.losses.base import FirstStageLoss
from taming.modules.transformer.gpt import GPT

_GRAPHS = 64  # of one function, such as the blocks' `forward`, in any of the few sizes
_SOFT_WEIGHT = 0.1  # of the published distilled model


Blocks = Level | Middle | magvit2.Level | maskgit.Level


class SharedOptions(TypedDict, total=False):
    """Parameters of both stages that decide how they train, not what they are."""

    compile: bool
    checkpoint_activations: bool
    fused_optimizer: bool


class TrainingOptions(SharedOptions, total=False):
    """Those of a first stage."""

    reuse_reconstruction: bool
    channels_last: bool


class TransformerOptions(SharedOptions, total=False):
    """Those of a transformer."""

    teacher: FilePath | None
    soft_loss_weight: Fraction


@dataclass(frozen=True)
class SharedWays:
    """The options' meanings, as far as both stages have them.

    Attributes:
        compile: blocks by torch.compile; each size of a batch makes it compile anew.
        checkpoint_activations: blocks keep their inputs alone, and are run again in the backward
            pass: less memory, one more forward pass.
        fused_optimizer: the update of all weights in one kernel; rounds differently.
    """

    compile: bool = False
    checkpoint_activations: bool = False
    fused_optimizer: bool = False

    def of_optimizer(self) -> dict[str, bool]:
        """Arguments for torch's optimizers."""
        return {"fused": True} if self.fused_optimizer else {}

    def prepare_states(self, optimizers: Sequence[Optimizer]) -> None:
        """Have Adam step as it was built, when what a checkpoint says is restored.

        That is how it stepped in the former run, in one kernel or not, and its counts of steps are
        where that looked for them.
        """
        for optimizer in optimizers:
            if not isinstance(optimizer, Adam | AdamW):
                continue
            for group in optimizer.param_groups:
                fused = bool(optimizer.defaults["fused"])
                group |= {name: optimizer.defaults[name] for name in ("fused", "foreach")}
                for parameter in group["params"]:
                    state = optimizer.state.get(parameter, {})
                    if isinstance(step := state.get("step"), Tensor):
                        place = parameter.device if fused or group["capturable"] else "cpu"
                        state["step"] = step.to(place, torch.float32 if fused else step.dtype)


@dataclass(frozen=True)
class TransformerWays(SharedWays):
    """The options' meanings for a transformer.

    Attributes:
        teacher: a run or checkpoint of a transformer that this one learns from, see
            `taming.models.distillation`.
        soft_loss_weight: from 0 to 1, of what the teacher says; by default 0.1.
    """

    teacher: str | None = None
    soft_loss_weight: float | None = None

    def __post_init__(self) -> None:
        if self.soft_loss_weight and self.teacher is None:
            raise UserError(
                f"model.params.soft_loss_weight is {self.soft_loss_weight}, but there is no "
                "teacher: add model.params.teacher=logs/<run>"
            )

    @property
    def soft_weight(self) -> float:
        """`soft_loss_weight` as it is used; at 0 no teacher is needed."""
        if self.teacher is None:
            return 0.0
        return _SOFT_WEIGHT if self.soft_loss_weight is None else self.soft_loss_weight

    def prepare(self, transformer: nn.Module) -> None:
        """Make a transformer ready to train in these ways; once, when training starts."""
        if not isinstance(transformer, GPT):
            if self.compile or self.checkpoint_activations:
                raise UserError(
                    f"compile and checkpoint_activations are for GPT, and this transformer is a "
                    f"{type(transformer).__name__}; leave them out"
                )
            return
        if self.checkpoint_activations:
            transformer.gradient_checkpointing = True
        for block in transformer.blocks if self.compile else ():
            block.compile(dynamic=False)  # one graph serves all blocks


@dataclass(frozen=True)
class TrainingWays(SharedWays):
    """The options' meanings for a first stage.

    Attributes:
        reuse_reconstruction: the discriminator sees what the autoencoder made of the batch before
            its update, not after it: one pass of the autoencoder less.
        compile: the blocks of encoder and decoder, LPIPS and the discriminator; blocks that have
            kernels of their own on a GPU (with `channels_last`) stay as they are.
        channels_last: weights and images with the channels side by side in memory, as
            convolutions of reduced precision want them.
    """

    reuse_reconstruction: bool = False
    channels_last: bool = False

    def lay_out(self, model: nn.Module) -> None:
        """Lay out the weights; before DistributedDataParallel sees them.

        It lays out gradients as weights were then: others it would average wrongly.
        """
        if self.channels_last:
            model.to(memory_format=torch.channels_last)

    def prepare(self, model: nn.Module) -> None:
        """Make a model ready to train in the other ways; once, when training starts."""
        for blocks in _blocks(model):
            blocks.checkpoints = self.checkpoint_activations
        if self.compile:
            # By default, what follows the eighth block would be run without a graph.
            limit = torch._dynamo.config.recompile_limit
            torch._dynamo.config.recompile_limit = max(limit, _GRAPHS)
            # The adaptive weight takes gradients of two losses by one graph.
            torch._functorch.config.donated_buffer = False
            # The compiler makes no backward pass of a backward pass, of which a penalty needs one.
            loss = model.loss
            twice = isinstance(loss, FirstStageLoss) and loss.differentiates_twice
            for part in _networks_of_loss(model, discriminator=not twice):
                part.compile(dynamic=False)  # a graph for each of the few sizes
            if not self._has_kernels(model):
                _compile_blocks(model)

    def _has_kernels(self, model: nn.Module) -> bool:
        """Whether blocks run in the kernels of `taming.modules.diffusionmodules.norm_kernels`."""
        device = next(model.parameters()).device
        return self.channels_last and runs_triton(device, task="normalization")

    def prepare_states(self, optimizers: Sequence[Optimizer]) -> None:
        """Also lay them out in memory as the parameters are."""
        super().prepare_states(optimizers)
        for optimizer in optimizers if self.fused_optimizer or self.channels_last else ():
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if value.shape == parameter.shape and value.stride() != parameter.stride():
                        state[name] = torch.empty_like(parameter).copy_(value)


def _blocks(model: nn.Module) -> Iterator[Blocks]:
    """Where nearly all of the time goes. The decoder's last convolution is none of them: gradients
    are taken at it alone."""
    for module in model.modules():
        if isinstance(module, Blocks):
            yield module


def _compile_blocks(model: nn.Module) -> None:
    for part in _blocks(model):
        part.compile(dynamic=False)
    for end in (part for part in model.modules() if isinstance(part, Encoder | Decoder)):
        end.activated = torch.compile(end.activated, dynamic=False)  # type: ignore[method-assign]


def _networks_of_loss(model: nn.Module, *, discriminator: bool) -> list[nn.Module]:
    children = dict(model.named_modules())
    names = ["loss.perceptual_loss", *["loss.discriminator"] * discriminator]
    return [children[name] for name in names if name in children]

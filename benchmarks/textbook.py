"""Training steps as the original wrote them, for the benchmarks to compare with.

Eager, attention written out, a backward pass for every use of a loss, and a second pass of the
autoencoder for the discriminator. As its Trainer did, the side that does not train asks for no
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.modules.losses.vqperceptual import hinge_d_loss

Cast = Callable[[], AbstractContextManager[Any]]


def first_stage_step(model: Any, x: Tensor, cast: Cast) -> Callable[[], None]:
    """A step of a VQGAN at which the discriminator counts."""
    (for_autoencoder, for_discriminator), _ = model.configure_optimizers()
    autoencoder = list(model.autoencoder_parameters())
    discriminator = list(model.discriminator.parameters())

    def step() -> None:
        _ask(autoencoder, discriminator)
        with cast():
            loss = _generator_loss(model, x)
        _update(for_autoencoder, loss)
        _ask(discriminator, autoencoder)
        with cast():
            fake = model(x)[0].detach()
            loss = hinge_d_loss(model.discriminator(x), model.discriminator(fake))
        _update(for_discriminator, loss)

    return step


def _ask(trained: list[nn.Parameter], left_alone: list[nn.Parameter]) -> None:
    for parameters, asked in ((trained, True), (left_alone, False)):
        for parameter in parameters:
            parameter.requires_grad_(asked)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _generator_loss(model: Any, x: Tensor) -> Tensor:
    """Equations 5 to 7, the adaptive weight by two backward passes of its own."""
    reconstructions, codebook_loss = model(x)
    pixels = (x - reconstructions).abs()
    if model.loss.perceptual_loss is not None:
        pixels = pixels + model.loss.perceptual_loss(x, reconstructions)
    nll = pixels.mean()
    g = -model.discriminator(reconstructions).mean()
    last = model.get_last_layer()
    norms = [torch.autograd.grad(one, last, retain_graph=True)[0].norm() for one in (nll, g)]
    weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    return nll + weight * g + codebook_loss.mean()


class WrittenOutAttention(nn.Module):
    """Causal attention of a block of `GPT` with the matrix of scores in memory, by its weights."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.of = attention

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        heads = (layer(x).unflatten(2, (self.of.n_head, -1)).transpose(1, 2) for layer in self._qkv)
        q, k, v = heads  # (B, nh, T, hs)
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])  # (B, nh, T, T)
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril()
        weights = F.dropout(
            scores.masked_fill(~seen, -math.inf).softmax(-1), self.of.attn_pdrop, self.training
        )
        out: Tensor = self.of.resid_drop(self.of.proj((weights @ v).transpose(1, 2).flatten(2)))
        return out

    @property
    def _qkv(self) -> tuple[nn.Module, ...]:
        return self.of.query, self.of.key, self.of.value


def transformer_step(gpt: Any, tokens: Tensor, start: int, cast: Cast) -> Callable[[], None]:
    """A step of a GPT on sequences (B, T) whose first `start` tokens are the condition."""
    for block in gpt.blocks.children():
        block.attn = WrittenOutAttention(block.attn)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-4, betas=(0.9, 0.95))

    def step() -> None:
        with cast():
            logits, _ = gpt(tokens[:, :-1])
            logits, targets = logits[:, start - 1 :], tokens[:, start:]
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        _update(optimizer, loss)

    return step

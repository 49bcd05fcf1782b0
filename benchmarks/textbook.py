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
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.kernel_choice import TORCH
from taming.modules import attention, linear
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


def written_out(
    q: Tensor, k: Tensor, v: Tensor, allowed: Any, dropout: float, *, is_causal: bool
) -> Tensor:
    """Attention as in textbooks, with the signature of torch's."""
    if is_causal:
        allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = q @ k.mT / math.sqrt(q.shape[3])  # (B, nh, T, T)
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    return F.dropout(weights, dropout) @ v


def with_written_out_attention(step: Callable[[], None]) -> Callable[[], None]:
    """A step of a transformer whose attention is written out, and its linear layers torch's."""

    def slow_step() -> None:
        with (
            patch.object(F, "scaled_dot_product_attention", written_out),
            patch.object(linear, "training_kernel", lambda *_: TORCH),
            patch.object(attention, "training_kernel", lambda *_: TORCH),
        ):
            step()

    return slow_step


def transformer_step(gpt: Any, tokens: Tensor, start: int, cast: Cast) -> Callable[[], None]:
    """A step of a GPT on sequences (B, T) whose first `start` tokens are the condition."""
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-4, betas=(0.9, 0.95))

    def step() -> None:
        with cast():
            logits, _ = gpt(tokens[:, :-1])
            logits, targets = logits[:, start - 1 :], tokens[:, start:]
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        _update(optimizer, loss)

    return with_written_out_attention(step)

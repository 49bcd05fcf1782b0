"""Indices of a batch of images: at the training size from one cache, at others through windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taming.errors import UserError
from taming.modules.transformer.decoding import CachedDecoder, generate, known_or, one_pass_logits
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.permuter import Identity
from taming.sampling.settings import SampleSettings
from taming.sampling.sliding_window import Box, SlidingWindow, layout_for


@dataclass(frozen=True)
class Progress:
    """How far a batch is: `drawn` of `total` indices of each of its images.

    `indices` int64 (B, total) are the images' in the transformer's order; those that are not drawn
    yet are arbitrary. They change while drawing goes on.
    """

    drawn: int
    total: int
    indices: Tensor


OnStep = Callable[[Progress], None]


class TokenDrawer:
    """Draws the indices of batches of images; its decoder serves all batches.

    Args:
        model: a `Net2NetTransformer` in eval mode.
        batch_size: the largest batch.
        shape: height and width of the images in tokens.
        dtype: the transformer's precision (its own by default).
        compiled: steps from one cache go through `torch.compile`.

    Raises:
        UserError: for guidance of a model that was not trained for it, or another size than the
            training's for a model with a permuter.
    """

    def __init__(
        self,
        model: Any,
        settings: SampleSettings,
        batch_size: int,
        shape: tuple[int, int],
        dtype: torch.dtype | None = None,
        on_step: OnStep | None = None,
        compiled: bool = False,
    ) -> None:
        self.gpt, self.n_codes = model.transformer, model.n_codes
        self.null_token = _null_token(model) if settings.guided else None
        self.copies = 2 if settings.guided else 1
        self.settings, self.batch_size, self.dtype = settings, batch_size, dtype
        self.compiled = compiled
        self.shape, self.window = shape, tuple(model.latent_shape()[1:])
        self.permuter, self.on_step = model.permuter, on_step
        self.at_once = model.pkeep <= 0 and shape == self.window
        if shape != self.window and not isinstance(model.permuter, Identity):
            name = type(model.permuter).__name__
            raise UserError(
                f"this model draws in the order {name}, which there is at its own size only; leave "
                "the size out"
            )
        self._decoder: CachedDecoder | None = None
        self._weights: Weights | None = None

    def __call__(
        self,
        condition: Tensor,
        uniform: Tensor,
        known: Tensor | None = None,
        prompts_in: Callable[[Box], Tensor] | None = None,
    ) -> Tensor:
        """Indices (B, H * W) in the transformer's order.

        Args:
            condition: int64 [B, n], or a map [B, H, W].
            uniform: (B, H * W) random numbers in [0, 1).
            known: [B, H, W] given indices, row by row, -1 where there is none.
            prompts_in: conditions [B, n] for windows, see `Request`; at the training size unused.
        """
        condition = self._with_null(condition)
        if self.shape != self.window:
            return self._draw_by_windows(condition, uniform, known, prompts_in)
        given = None if known is None else self.permuter(known.flatten(1))
        draw = self._draw_at_once if self.at_once else self._draw_in_order
        return draw(condition.flatten(1), uniform, given)

    def _with_null(self, condition: Tensor) -> Tensor:
        """With guidance, the condition and the empty one."""
        if self.null_token is None:
            return condition
        return torch.cat((condition, torch.full_like(condition, self.null_token)))

    def _pick(self, logits: Tensor, n: int, uniform: Tensor) -> Tensor:
        logits = self.settings.guide(logits[:, : self.n_codes], n / uniform.shape[1])
        return self.settings.pick(logits, uniform[:, n])

    def _draw_in_order(self, prompt: Tensor, uniform: Tensor, known: Tensor | None) -> Tensor:
        steps = uniform.shape[1]
        if self._decoder is None:
            rows, length = self.copies * self.batch_size, prompt.shape[1] + steps - 1
            self._decoder = CachedDecoder(
                self.gpt, rows, length, self.dtype, compiled=self.compiled
            )

        def tell(tokens: Tensor, n: int) -> None:
            if self.on_step is not None:
                self.on_step(Progress(n + 1, steps, tokens))

        def pick(logits: Tensor, n: int) -> Tensor:
            return self._pick(logits, n, uniform)

        return generate(self._decoder, prompt, steps, pick, tell, known, self.copies)

    @torch.no_grad()
    def _draw_at_once(self, prompt: Tensor, uniform: Tensor, known: Tensor | None) -> Tensor:
        steps = uniform.shape[1]
        logits = one_pass_logits(self.gpt, prompt, steps)
        drawn = [self._pick(logits[:, n], n, uniform) for n in range(steps)]
        return torch.stack([known_or(token, known, n) for n, token in enumerate(drawn)], dim=1)

    def _draw_by_windows(
        self,
        condition: Tensor,
        uniform: Tensor,
        known: Tensor | None,
        prompts_in: Callable[[Box], Tensor] | None,
    ) -> Tensor:
        if self._weights is None:
            self._weights = Weights(self.gpt, self.dtype)
        height, width = self.shape
        layout = layout_for(self.gpt, condition, self.shape, self.window)
        condition_at = None
        if prompts_in is not None:

            def condition_at(box: Box) -> Tensor:
                return self._with_null(prompts_in(box).to(condition.device))

        sampler = SlidingWindow(self._weights, condition, layout, self.copies, condition_at)

        def pick(logits: Tensor, row: int, column: int) -> Tensor:
            return self._pick(logits, row * width + column, uniform)

        def tell(grid: Tensor, drawn: int) -> None:
            if self.on_step is not None:
                self.on_step(Progress(drawn, height * width, grid.flatten(1)))

        return sampler.draw(pick, known, tell).flatten(1).clone()


def _null_token(model: Any) -> int:
    if not model.cond_drop:
        raise UserError(
            "guidance needs a model that was trained with cond_drop, and this one was not; leave "
            "guidance at 1"
        )
    return model.null_token

"""Indices of a batch of images: at the training size from one cache, at others through windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.decoding import CachedDecoder, generate, known_or, one_pass_logits
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.permuter import Identity
from taming.sampling.settings import SampleSettings
from taming.sampling.sizes import trained_shape
from taming.sampling.sliding_window import Box, SlidingWindow, layout_for


@dataclass(frozen=True)
class Progress:
    """How far a batch is: `done` of `total` indices of each of its images.

    `indices` int64 (B, total) are the images' in the transformer's order; those that are not
    sampled yet are arbitrary. They change while sampling goes on.
    """

    done: int
    total: int
    indices: Tensor


OnStep = Callable[[Progress], None]


class TokenSampler:
    """Samples the indices of batches of images; its decoder serves all batches.

    With guidance, a batch has every image twice, with its condition and with the null token in its
    place: 2 B rows of logits, which become B by `SampleSettings.guide`.

    Args:
        model: in eval mode.
        shape: height and width of the images in tokens.
        batch_size: the largest batch.
        dtype: the transformer's precision (its own by default).
        compiled: steps from one cache go through `torch.compile`.

    Raises:
        UserError: for guidance of a model that was not trained for it, or another size than the
            training's for a model with a permuter.
    """

    def __init__(
        self,
        model: Net2NetTransformer,
        settings: SampleSettings,
        shape: tuple[int, int],
        *,
        batch_size: int,
        dtype: torch.dtype | None = None,
        on_step: OnStep | None = None,
        compiled: bool = False,
    ) -> None:
        self.gpt, self.n_codes = model.transformer, model.n_codes
        self.null_token = _null_token(model) if settings.guided else None
        self.copies = 2 if settings.guided else 1
        self.settings, self.batch_size, self.dtype = settings, batch_size, dtype
        self.compiled = compiled
        self.shape, self.window = shape, trained_shape(model)
        self.permuter, self.on_step = model.permuter, on_step
        self.at_once = model.pkeep <= 0 and shape == self.window
        if shape != self.window and not isinstance(model.permuter, Identity):
            name = type(model.permuter).__name__
            raise UserError(
                f"this model samples in the order {name}, which exists for its own size only; "
                "leave the size out"
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
            known: [B, H, W] indices to keep, row by row, -1 at positions to sample.
            prompts_in: conditions [B, n] for windows, see `Request`; at the training size unused.
        """
        condition = self._with_null(condition)  # (copies * B, n) or (copies * B, H, W)
        if self.shape != self.window:
            return self._sample_by_windows(condition, uniform, known, prompts_in)
        # The i-th known index in the order of sampling is not the i-th in the image's rows.
        ordered = None if known is None else cast(Tensor, self.permuter(known.flatten(1)))
        sample = self._sample_at_once if self.at_once else self._sample_in_order
        return sample(condition.flatten(1), uniform, ordered)

    def _with_null(self, condition: Tensor) -> Tensor:
        """With guidance, the condition and below it, as further rows, the empty one."""
        if self.null_token is None:
            return condition
        return torch.cat((condition, torch.full_like(condition, self.null_token)))

    def _pick(self, logits: Tensor, n: int, uniform: Tensor) -> Tensor:
        """The n-th tokens (B,) from logits (copies * B, V)."""
        codes = logits[:, : self.n_codes]  # further tokens stand for conditions
        guided = self.settings.guide(codes, n / uniform.shape[1])  # (B, n_codes)
        return self.settings.pick(guided, uniform[:, n])

    def _report(self, done: int, indices: Tensor) -> None:
        if self.on_step is not None:
            self.on_step(Progress(done, indices.shape[1], indices))

    def _sample_in_order(self, prompt: Tensor, uniform: Tensor, known: Tensor | None) -> Tensor:
        """One token after the other; `prompt` is (copies * B, n)."""
        steps = uniform.shape[1]
        if self._decoder is None:
            rows = self.copies * self.batch_size
            length = prompt.shape[1] + steps - 1  # nothing reads the last token
            self._decoder = CachedDecoder(
                self.gpt, rows, length, self.dtype, compiled=self.compiled
            )
        return generate(
            self._decoder,
            prompt,
            steps,
            lambda logits, n: self._pick(logits, n, uniform),
            lambda tokens, n: self._report(n + 1, tokens),
            known=known,
            copies=self.copies,
        )

    @torch.no_grad()
    def _sample_at_once(self, prompt: Tensor, uniform: Tensor, known: Tensor | None) -> Tensor:
        """All tokens from one pass: for models that were trained to read nothing but `prompt`."""
        steps = uniform.shape[1]
        logits = one_pass_logits(self.gpt, prompt, steps)  # (copies * B, H * W, V)
        tokens = [self._pick(logits[:, n], n, uniform) for n in range(steps)]
        return torch.stack([known_or(token, known, n) for n, token in enumerate(tokens)], dim=1)

    def _sample_by_windows(
        self,
        condition: Tensor,
        uniform: Tensor,
        known: Tensor | None,
        prompts_in: Callable[[Box], Tensor] | None,
    ) -> Tensor:
        if self._weights is None:
            self._weights = Weights(self.gpt, self.dtype)
        width = self.shape[1]
        layout = layout_for(self.gpt, condition, self.shape, self.window)
        condition_in = None
        if prompts_in is not None:

            def condition_in(box: Box) -> Tensor:
                return self._with_null(prompts_in(box).to(condition.device))

        sampler = SlidingWindow(self._weights, condition, layout, self.copies, condition_in)
        grid = sampler.sample(  # (B, H, W)
            lambda logits, row, column: self._pick(logits, row * width + column, uniform),
            known,
            lambda grid, done: self._report(done, grid.flatten(1)),
        )
        return grid.flatten(1).clone()  # a copy that is no inference tensor


def _null_token(model: Net2NetTransformer) -> int:
    if not model.cond_drop:
        raise UserError(
            "guidance needs a model that was trained with cond_drop, and this one was not; leave "
            "guidance at 1"
        )
    return model.null_token

"""Indices of images of another size than the transformer's, through a sliding window.

Each position is predicted from a window around it (arXiv 2012.09841, section 3.3 and figure 3):
the condition's tokens in the window, then the image's tokens in the window before the position.

A worked example: windows of 4 x 4 tokens on a grid of 6 x 8. Position (3, 5) shall be at (2, 2) of
its window, whose corner is therefore (1, 3); it reads 2 * 4 + 2 = 10 tokens of the image. Position
(5, 7) would have its corner at (3, 5), beyond the last one, (2, 4); it is at (3, 3) of the window
there. The window at (2, 4) serves (4, 6), (4, 7), (5, 6) and (5, 7), which see the same tokens as
far as they go, so that its keys and values are computed once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from taming.errors import UserError
from taming.modules.transformer.decoding import check_length, known_or, path_read, segment_at
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.own_methods import OwnMethods, weights_for
from taming.modules.transformer.plain import block_size_of, vocabulary_of
from taming.modules.transformer.segment import Segment
from taming.modules.transformer.variants import check_causal, check_layout
from taming.sampling.any_order_windows import sample_in_windows
from taming.sampling.chance import Chance
from taming.sampling.settings import SampleSettings, TopK
from taming.sampling.windows import (
    Box,
    Conditions,
    Corner,
    Layout,
    Position,
    check_condition,
    check_tokens,
    windows_in_memory,
)


class _Caches:
    """Keys and values of the windows that serve several positions."""

    def __init__(
        self, weights: Weights | OwnMethods, layout: Layout, rows: int, length: int
    ) -> None:
        self.weights, self.layout, self.rows, self.length = weights, layout, rows, length
        self.limit = windows_in_memory(weights, rows, length)
        self.held: dict[Corner, Tensor] = {}
        self.filled: dict[Corner, int] = {}
        self._free: list[Tensor] = []

    def at(self, corner: Corner) -> Tensor | None:
        """The window's cache; None for a window that is not used again, or if memory is full."""
        if isinstance(self.weights, OwnMethods):
            return None
        if corner not in self.held:
            rows, columns = self.layout.served(corner)
            if len(columns) == 1 and (len(rows) == 1 or len(self.held) >= self.limit):
                return None
            size = (self.rows, self.length)
            self.held[corner] = self._free.pop() if self._free else self.weights.new_cache(*size)
        return self.held[corner]

    def leave(self, row: int, column: int) -> None:
        """Free the window's cache if (row, column) was the last to use it."""
        corner = self.layout.corner(row, column)
        rows, columns = self.layout.served(corner)
        if (row, column) == (rows[-1], columns[-1]) and corner in self.held:
            self._free.append(self.held.pop(corner))
            self.filled.pop(corner, None)


class SlidingWindow:
    """Samples grids of indices through a window; see `sample_sliding_window`.

    Args:
        weights: the transformer's.
        condition: int64 [copies * B, H, W], or a prefix [copies * B, n]: an image can have several.
        condition_in: the prefix for a window, if it is not the same for all of them.
        trained: (height, width) in tokens of the images of training, of a GPT with
            `target_positions`: codes stand where they would in one; by default that is a window.
    """

    def __init__(
        self,
        weights: Weights | OwnMethods,
        condition: Tensor,
        layout: Layout,
        copies: int = 1,
        condition_in: Callable[[Box], Tensor] | None = None,
        *,
        trained: tuple[int, int] | None = None,
    ) -> None:
        if isinstance(weights, Weights):
            check_causal(weights.config)
        self.weights, self.condition, self.layout = weights, condition, layout
        self.copies, self.conditions = copies, Conditions(condition, layout, condition_in)
        h, w = layout.window
        length = self.conditions.length + h * w - 1
        self.caches = _Caches(weights, layout, len(condition), length)
        self._columns = torch.arange(length, device=weights.device)
        self._modulations = weights.modulations(condition[:, 0])
        self._path: Tensor | None = None  # (n + h * w,), of a window's tokens
        if isinstance(weights, Weights) and weights.config.target_positions:
            path = self.conditions.path(trained or layout.window)
            self._path = path.to(weights.device)

    @torch.inference_mode()
    def sample(
        self,
        pick: Callable[[Tensor, int, int], Tensor],
        known: Tensor | None = None,
        on_step: Callable[[Tensor, int], None] | None = None,
    ) -> Tensor:
        """Indices int64 [B, H, W].

        `pick(logits, row, column)` chooses tokens (B,) from logits (copies * B, V);
        `known` [B, H, W] are indices to keep, -1 elsewhere; `on_step(grid, done)` is called
        after every step, with the number of positions that are done.
        """
        height, width = self.layout.shape
        batch = len(self.condition) // self.copies
        if known is None:
            grid, complete = self.condition.new_zeros(batch, height, width), None
        else:
            grid, complete = known.clamp(min=0), (known >= 0).all(0).tolist()
        done = 0
        for positions in self.layout.steps():
            # A position that is known in all images of the batch needs no logits.
            unknown = [p for p in positions if complete is None or not complete[p[0]][p[1]]]
            for (row, column), logits in self._logits(grid, unknown):
                token = pick(logits, row, column)  # (B,)
                known_row = None if known is None else known[:, row]  # (B, W)
                grid[:, row, column] = known_or(token, known_row, column)
            for row, column in positions:
                self.caches.leave(row, column)
            done += len(positions)
            if on_step is not None:
                on_step(grid, done)
        return grid

    def _logits(self, grid: Tensor, positions: Sequence[Position]) -> list[tuple[Position, Tensor]]:
        """Each of the positions with its logits (copies * B, V), all from one pass.

        Windows with a cache are a segment each, of the tokens that are new in them. Windows without
        one are read from the start; those that read equally many tokens share a segment.
        """
        kept: list[tuple[Position, Segment]] = []
        fresh: dict[int, list[tuple[Position, Tensor]]] = defaultdict(list)  # by length
        for position in positions:
            tokens, corner = self._seen(grid, *position), self.layout.corner(*position)
            cache = self.caches.at(corner)
            if cache is None:
                fresh[tokens.shape[1]].append((position, tokens))
            else:
                kept.append((position, self._continued(tokens, corner, cache)))
        order = [position for position, _ in kept]
        segments = [segment for _, segment in kept]
        for same in fresh.values():
            order += [position for position, _ in same]
            together = torch.cat([tokens for _, tokens in same])  # (k * copies * B, n)
            segments.append(self._segment(together, 0))
        if not segments:
            return []
        # (len(positions) * copies * B, V), in the order of the segments.
        logits = torch.split(self.weights.logits(segments), len(self.condition))
        return list(zip(order, logits, strict=True))

    def _seen(self, grid: Tensor, row: int, column: int) -> Tensor:
        """What the transformer reads to predict a position: (copies * B, n)."""
        (top, left), (h, w) = self.layout.corner(row, column), self.layout.window
        before = (row - top) * w + column - left  # how many of the window's h * w tokens
        image = grid[:, top : top + h, left : left + w].flatten(1)[:, :before]  # (B, before)
        condition = self.conditions.at((top, left))  # (copies * B, n)
        return torch.cat((condition, image.repeat(self.copies, 1)), dim=1)

    def _continued(self, tokens: Tensor, corner: Corner, cache: Tensor) -> Segment:
        start = self.caches.filled.get(corner, 0)
        if start < self.weights.n_unmasked:
            start = 0  # its first tokens see the new ones as well, so their keys have changed
        self.caches.filled[corner] = tokens.shape[1]
        return self._segment(tokens[:, start:], start, cache)

    def _segment(self, tokens: Tensor, start: int, cache: Tensor | None = None) -> Segment:
        segment = segment_at(tokens, start, self._columns, self.weights.n_unmasked, cache)
        if self._path is not None:
            path = self._path.expand(len(tokens), -1)
            segment.path = path_read(path, start, start + tokens.shape[1], 1)
        if not segment.starts:
            segment.modulations = self._modulations
        return segment


def sample_sliding_window(
    transformer: GPT,
    cond: Tensor | None,
    shape: tuple[int, int],
    window: int | tuple[int, int] = 16,
    *,
    temperature: float = 1.0,
    top_k: TopK = None,
    top_p: float = 1.0,
    seed: int = 0,
    uniform: Tensor | None = None,
    known: Tensor | None = None,
    n_codes: int | None = None,
    batch_size: int = 1,
    dtype: torch.dtype | None = None,
    on_step: Callable[[Tensor, int], None] | None = None,
) -> Tensor:
    """Sample indices int64 [B, H, W] of any size from a GPT that was trained on `window`.

    One with `target_positions` sees all that is known in a window, and samples from there inwards;
    any other sees what comes before a position, row by row.

    Args:
        cond: an index map [B, H, W], of which the transformer sees the window; a prefix [B, n],
            which it sees always; or None: the start token 0, for `batch_size` images.
        shape: (H, W), in tokens. A window that is larger shrinks to it.
        window: side, or (height, width), in tokens.
        temperature, top_k, top_p: see `SampleSettings`.
        seed: image n of the batch uses the random numbers of (seed, n).
        uniform: (B, H * W) random numbers in [0, 1) instead.
        known: [B, H, W] indices to keep, -1 at positions to sample.
        n_codes: sample among the first tokens of the vocabulary only.
        dtype: precision of the transformer (its own by default).
        on_step: called with the grid so far and the number of its positions that are done.

    Raises:
        UserError: for a condition of another size, tokens that the transformer does not have, or a
            window that is longer than its block size.
    """
    settings = SampleSettings(temperature, top_k, top_p)
    weights = weights_for(transformer, dtype, batch_size if cond is None else len(cond))
    if cond is None:
        cond = torch.zeros(batch_size, 1, dtype=torch.int64)
    elif cond.is_cpu:
        check_tokens(vocabulary_of(transformer), cond)
    sides = (window, window) if isinstance(window, int) else window
    if min(*shape, *sides) < 1:
        raise UserError(f"the image is {shape} and the window {sides} tokens; both need some")
    length, device, numbers = shape[0] * shape[1], weights.device, range(len(cond))
    chance = Chance(settings, n_codes, seed, numbers, length=length, device=device)
    if uniform is not None:
        chance.uniform = uniform.to(device)
    if isinstance(weights, Weights) and weights.config.target_positions:
        conditions = Conditions(cond.to(device), Layout.of(shape, sides))
        return _sample_around(weights, conditions, sides, chance, known=known, on_step=on_step)
    layout = layout_for(transformer, cond, shape, sides)

    def pick(logits: Tensor, row: int, column: int) -> Tensor:
        return chance.pick(logits, row * shape[1] + column)

    return SlidingWindow(weights, cond.to(device), layout).sample(pick, known, on_step).clone()


def _sample_around(
    weights: Weights,
    conditions: Conditions,
    trained: tuple[int, int],
    chance: Chance,
    *,
    known: Tensor | None,
    on_step: Callable[[Tensor, int], None] | None,
) -> Tensor:
    """Indices [B, H, W] of a GPT of any order; arguments are of `sample_in_windows`."""
    grid = (len(chance.streams), *conditions.layout.shape)
    known = None if known is None else known.to(weights.device)
    kept = 0 if known is None else int((known >= 0).flatten(1).sum(1).min())

    def report(codes: Tensor, done: int) -> None:
        if on_step is not None:
            on_step(codes.view(grid), kept + done)

    codes = sample_in_windows(weights, conditions, trained, chance, known=known, report=report)
    return codes.view(grid).clone()


def layout_for(gpt: GPT, cond: Tensor, shape: tuple[int, int], sides: tuple[int, int]) -> Layout:
    """The checked windows for a condition [B, H, W] or [B, n] and a grid of `shape`."""
    check_condition(cond, shape)
    conditions = Conditions(cond, Layout.of(shape, sides))
    h, w = conditions.layout.window
    if isinstance(gpt, GPT):
        if gpt.config.target_positions:  # codes stand where they would in an image of training
            h, w = sides
        check_layout(gpt.config, conditions.length_in((h, w)), (h, w))
    check_length(block_size_of(gpt), conditions.length_in((h, w)) + h * w - 1)
    return conditions.layout

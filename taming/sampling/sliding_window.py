"""Indices of images of another size than the transformer's, through a sliding window.

Each position is predicted from a window around it (arXiv 2012.09841, section 3.3 and figure 3):
the condition's tokens in the window, then the image's tokens in the window before the position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taming.errors import UserError
from taming.modules.transformer.decoding import check_length, known_or, segment_at
from taming.modules.transformer.inference import Segment, Weights
from taming.sampling.settings import SampleSettings, uniforms

# Windows that only later rows use again keep their keys and values while all of them fit into it.
CACHE_BYTES = 4 * 2**30

Corner = tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Layout:
    """Windows of (h, w) tokens on a grid of (H, W), no smaller than they are.

    A window is centred on its position, so that this falls on (h // 2, w // 2) of it, as far as the
    grid's borders let it.
    """

    shape: tuple[int, int]
    window: tuple[int, int]

    def corner(self, row: int, column: int) -> Corner:
        """Upper left corner of the window of a position."""
        (height, width), (h, w) = self.shape, self.window
        return min(max(row - h // 2, 0), height - h), min(max(column - w // 2, 0), width - w)

    def served(self, corner: Corner) -> tuple[range, range]:
        """Rows and columns of the positions whose window is at `corner`."""
        rows, columns = (
            range(
                0 if at == 0 else at + window // 2,
                side if at == side - window else at + window // 2 + 1,
            )
            for at, side, window in zip(corner, self.shape, self.window, strict=True)
        )
        return rows, columns

    def steps(self) -> Iterator[list[tuple[int, int]]]:
        """Positions that can be drawn together, when all that they see has been drawn.

        In the rows above, a window reaches less than its width beyond its position: each row
        follows the one above it a window's width behind.
        """
        (height, width), lag = self.shape, self.window[1]
        for time in range((height - 1) * lag + width):
            first = max(0, -(-(time - width + 1) // lag))
            last = min(height - 1, time // lag)
            yield [(row, time - row * lag) for row in range(first, last + 1)]


class _Caches:
    """Keys and values of the windows that serve several positions."""

    def __init__(self, weights: Weights, layout: Layout, rows: int, length: int) -> None:
        self.weights, self.layout, self.rows, self.length = weights, layout, rows, length
        size = rows * length * weights.config.n_embd * weights.dtype.itemsize
        self.limit = CACHE_BYTES // (2 * weights.config.n_layer * size)
        self.held: dict[Corner, Tensor] = {}
        self.filled: dict[Corner, int] = {}
        self._free: list[Tensor] = []

    def at(self, corner: Corner) -> Tensor | None:
        """The window's cache; None where there is none, as it would not be used again."""
        if corner not in self.held:
            rows, columns = self.layout.served(corner)
            if len(columns) == 1 and (len(rows) == 1 or len(self.held) >= self.limit):
                return None
            self.held[corner] = (
                self._free.pop() if self._free else self.weights.new_cache(self.rows, self.length)
            )
        return self.held[corner]

    def leave(self, row: int, column: int) -> None:
        """Let go of the cache that (row, column) was the last to use."""
        corner = self.layout.corner(row, column)
        rows, columns = self.layout.served(corner)
        if (row, column) == (rows[-1], columns[-1]) and corner in self.held:
            self._free.append(self.held.pop(corner))
            self.filled.pop(corner, None)


class SlidingWindow:
    """Draws grids of indices through a window; see `sample_sliding_window`.

    Args:
        weights: the transformer's.
        condition: int64 [copies * B, H, W], or a prefix [copies * B, n]: an image can have several.
        condition_in: the prefix for a window at (x0, y0, width, height), as shares of the image,
            where it is not the same for all of them.
    """

    def __init__(
        self,
        weights: Weights,
        condition: Tensor,
        layout: Layout,
        copies: int = 1,
        condition_in: Callable[[Box], Tensor] | None = None,
    ) -> None:
        self.weights, self.condition, self.layout = weights, condition, layout
        self.copies, self.condition_in = copies, condition_in
        h, w = layout.window
        self.before = h * w if condition.dim() == 3 else condition.shape[1]
        length = self.before + h * w - 1
        self.caches = _Caches(weights, layout, len(condition), length)
        self._columns = torch.arange(length, device=weights.device)

    @torch.inference_mode()
    def draw(
        self,
        pick: Callable[[Tensor, int, int], Tensor],
        known: Tensor | None = None,
        on_step: Callable[[Tensor, int], None] | None = None,
    ) -> Tensor:
        """Indices int64 [B, H, W].

        `pick(logits, row, column)` chooses tokens (B,) from logits (copies * B, V);
        `known` [B, H, W] are given ones, -1 elsewhere; `on_step(grid, drawn)` is called
        after every step, with the number of positions that are drawn.
        """
        height, width = self.layout.shape
        batch = len(self.condition) // self.copies
        grid = (
            self.condition.new_zeros(batch, height, width) if known is None else known.clamp(min=0)
        )
        complete = None if known is None else (known >= 0).all(0).tolist()
        drawn = 0
        for positions in self.layout.steps():
            open_ones = [p for p in positions if complete is None or not complete[p[0]][p[1]]]
            for (row, column), logits in self._logits(grid, open_ones):
                token = pick(logits, row, column)
                flat = None if known is None else known[:, row]
                grid[:, row, column] = known_or(token, flat, column)
            for row, column in positions:
                self.caches.leave(row, column)
            drawn += len(positions)
            if on_step is not None:
                on_step(grid, drawn)
        return grid

    def _logits(
        self, grid: Tensor, positions: Sequence[tuple[int, int]]
    ) -> list[tuple[tuple[int, int], Tensor]]:
        """Each of the positions with its logits (copies * B, V), all from one pass."""
        kept: list[tuple[tuple[int, int], Segment]] = []
        fresh: dict[int, list[tuple[tuple[int, int], Tensor]]] = defaultdict(list)
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
            together = torch.cat([tokens for _, tokens in same])
            segments.append(self._segment(together, 0))
        if not segments:
            return []
        logits = self.weights.logits(segments).split(len(self.condition))
        return list(zip(order, logits, strict=True))

    def _seen(self, grid: Tensor, row: int, column: int) -> Tensor:
        """What the transformer reads to predict a position: (copies * B, n)."""
        (top, left), (h, w) = self.layout.corner(row, column), self.layout.window
        before = (row - top) * w + column - left
        image = grid[:, top : top + h, left : left + w].flatten(1)[:, :before]
        condition = self.condition
        if self.condition_in is not None:
            height, width = self.layout.shape
            condition = self.condition_in((left / width, top / height, w / width, h / height))
        elif condition.dim() == 3:
            condition = condition[:, top : top + h, left : left + w].flatten(1)
        return torch.cat((condition, image.repeat(self.copies, 1)), dim=1)

    def _continued(self, tokens: Tensor, corner: Corner, cache: Tensor) -> Segment:
        start = self.caches.filled.get(corner, 0)
        if start < self.weights.config.n_unmasked:
            start = 0  # its first tokens see the new ones, too
        self.caches.filled[corner] = tokens.shape[1]
        return self._segment(tokens[:, start:], start, cache)

    def _segment(self, tokens: Tensor, start: int, cache: Tensor | None = None) -> Segment:
        return segment_at(tokens, start, self._columns, self.weights.config.n_unmasked, cache)


def sample_sliding_window(
    transformer: torch.nn.Module,
    cond: Tensor | None,
    shape: tuple[int, int],
    window: int | tuple[int, int] = 16,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    uniform: Tensor | None = None,
    known: Tensor | None = None,
    n_codes: int | None = None,
    batch_size: int = 1,
    dtype: torch.dtype | None = None,
    on_step: Callable[[Tensor, int], None] | None = None,
) -> Tensor:
    """Draw indices int64 [B, H, W] of any size from a GPT that was trained on `window`.

    Args:
        transformer: the GPT.
        cond: an index map [B, H, W], of which the transformer sees the window; a prefix [B, n],
            which it sees always; or None: the start token 0, for `batch_size` images.
        shape: (H, W), in tokens. Where it is smaller than the window, the window shrinks to it.
        window: side, or (height, width), in tokens.
        temperature, top_k, top_p: see `SampleSettings`; temperature 0 takes the likeliest token.
        seed: image n of the batch uses the random numbers of (seed, n).
        uniform: (B, H * W) random numbers in [0, 1) instead.
        known: [B, H, W] indices that are given, -1 where there is none: they are kept.
        n_codes: draw among the first tokens of the vocabulary only.
        dtype: precision of the transformer (its own by default).
        on_step: called with the grid so far and the number of its positions that are drawn.

    Raises:
        UserError: for a condition of another size, tokens that the transformer does not have, or a
            window that is longer than its block size.
    """
    gpt: Any = transformer
    settings = SampleSettings(temperature, top_k, top_p)
    weights = Weights(gpt, dtype)
    if cond is None:
        cond = torch.zeros(batch_size, 1, dtype=torch.int64)
    cond = cond.to(weights.device)
    layout = layout_for(gpt, cond, shape, window)
    if uniform is None:
        uniform = uniforms(seed, range(len(cond)), shape[0] * shape[1])
    uniform = uniform.to(weights.device)

    def pick(logits: Tensor, row: int, column: int) -> Tensor:
        return settings.pick(logits[:, :n_codes], uniform[:, row * shape[1] + column])

    return SlidingWindow(weights, cond, layout).draw(pick, known, on_step).clone()


def layout_for(
    gpt: Any, cond: Tensor, shape: tuple[int, int], window: int | tuple[int, int]
) -> Layout:
    """The windows for a condition [B, H, W] or [B, n] and a grid of `shape`, after checks.

    Raises:
        UserError: as `sample_sliding_window` does.
    """
    sides = (window, window) if isinstance(window, int) else window
    if min(*shape, *sides) < 1:
        raise UserError(f"the image is {shape} and the window {sides} tokens; both need some")
    if cond.dim() not in (2, 3) or cond.dim() == 3 and tuple(cond.shape[1:]) != tuple(shape):
        raise UserError(
            f"the condition has shape {list(cond.shape)}; for an image of {shape[0]} x {shape[1]} "
            f"tokens it must be a map [B, {shape[0]}, {shape[1]}] or a prefix [B, n]"
        )
    size = gpt.config.vocab_size
    if cond.numel() and not 0 <= int(cond.min()) <= int(cond.max()) < size:
        raise UserError(
            f"the condition has tokens from {int(cond.min())} to {int(cond.max())}, but the "
            f"transformer's vocabulary counts from 0 to {size - 1}"
        )
    h, w = min(sides[0], shape[0]), min(sides[1], shape[1])
    before = h * w if cond.dim() == 3 else cond.shape[1]
    if not before:
        raise UserError("the condition is empty; without one, pass None")
    check_length(gpt, before + h * w - 1)
    return Layout(shape, (h, w))

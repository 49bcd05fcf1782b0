"""Orders in which codes are read and predicted, and how many of them at once.

A sequence of condition c0 c1 and codes z0 z1 z2 (of a row) has positions 0 to 4. Its `path` in the
order z2 z0 z1 is [0, 1, 4, 2, 3], and a GPT with `target_positions` reads it as

    token        c0  c1  z2  z0
    position      0   1   4   2
    to predict    1   4   2   3, where z1 is

In training each token predicts one position; in sampling the last one may be asked for several
(`decoding.CachedDecoder.foresee`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain

import torch
from torch import Tensor

from taming.modules.transformer.decoding import CachedDecoder

# Which share of the codes is still masked, or to be sampled, by the share of steps that are done
# (arXiv 2202.04200, section 3.3).
COSINE = "cosine"
SCHEDULES: dict[str, Callable[[float], float]] = {
    COSINE: lambda done: math.cos(math.pi / 2 * done),
    "linear": lambda done: 1 - done,
}


def random_orders(count: int, length: int, device: torch.device | None = None) -> Tensor:
    """`count` random permutations of 0 to `length` - 1, int64 (count, length), by torch's global
    generator of the device."""
    return torch.rand(count, length, device=device).argsort(1)


def path_of(order: Tensor, before: int) -> Tensor:
    """Positions (B, before + n) of `before` tokens, and then of codes in an `order` (B, n)."""
    condition = torch.arange(before, device=order.device).expand(len(order), -1)
    return torch.cat((condition, order + before), dim=1)


def kept_first(order: Tensor, known: Tensor) -> Tensor:
    """An `order` (B, n) with the places first, by rows, where `known` (B, n) is not -1."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)  # by place: when it comes
    return torch.where(known >= 0, places - order.shape[1], rank).argsort(1)


def inwards(known: Tensor) -> Tensor:
    """Orders (B, h * w) that lead from what is known (B, h, w), not -1, into the holes.

    Known places are first, by rows. Each of the others is the one that then has most of the eight
    around it, so that its code is predicted from what it has to fit to. In a hole at a corner,

        8 6 .
        7 5 .    by rows, the place that comes last would be the first
        . . .

    Of images of which nothing is known, all places are by rows.
    """
    masks = (known >= 0).tolist()
    kept = [tuple(chain.from_iterable(rows)) for rows in masks]  # (B, h * w)
    height, width = known.shape[1:]
    # Images of a batch mostly keep the same.
    orders = {there: _inwards(there, height, width) for there in set(kept)}
    return torch.tensor([orders[there] for there in kept], device=known.device)


def _inwards(there: Sequence[bool], height: int, width: int) -> list[int]:
    """The order of `inwards` for one image, (h * w,)."""
    if not any(there):
        return list(range(len(there)))
    done = list(there)
    counts = [sum(done[n] for n in _around(place, height, width)) for place in range(len(done))]
    waiting = [(-counts[place], place) for place, is_there in enumerate(done) if not is_there]
    order = [place for place, is_there in enumerate(done) if is_there]
    heapify(waiting)
    while waiting:
        _, place = heappop(waiting)
        if done[place]:
            continue  # from when it had fewer around it
        done[place] = True
        order.append(place)
        for n in _around(place, height, width):
            if not done[n]:
                counts[n] += 1
                heappush(waiting, (-counts[n], n))
    return order


def _around(place: int, height: int, width: int) -> list[int]:
    """A place by rows, and those of the eight around it that are in the image."""
    row, column = divmod(place, width)
    rows = range(max(row - 1, 0), min(row + 2, height))
    columns = range(max(column - 1, 0), min(column + 2, width))
    return [y * width + x for y in rows for x in columns]


def in_order(codes: Tensor, order: Tensor) -> Tensor:
    """`codes` (B, n) by rows -> in an `order` (B, n)."""
    return codes.gather(1, order)


def by_rows(codes: Tensor, order: Tensor) -> Tensor:
    """`codes` (B, n) in an `order` (B, n) -> by rows."""
    return torch.zeros_like(codes).scatter_(1, order, codes)


def left_after(length: int, steps: int, schedule: str = COSINE) -> list[int]:
    """How many of `length` codes are left after each step, of which there are at most `length`.

    The last number is 0, and every step takes a code at least. 16 codes in 4 steps are left as

        cosine   15 11 6 0
        linear   12 8 4 0
    """
    steps, left = min(steps, length), list[int]()
    for step in range(1, steps + 1):
        wanted = round(length * SCHEDULES[schedule](step / steps))
        before = left[-1] if left else length
        left.append(min(max(wanted, steps - step), before - 1))
    return left


def sizes_of(left: Sequence[int], length: int) -> list[int]:
    """How many codes each step takes, of what is `left_after` it."""
    return [before - after for before, after in zip([length, *left], left, strict=False)]


def generate_in_steps(
    decoder: CachedDecoder,
    prompt: Tensor,
    path: Tensor,
    sizes: Sequence[int],
    pick: Callable[[Tensor, int], Tensor],
    on_step: Callable[[Tensor, int], None] | None = None,
    known: Tensor | None = None,
    copies: int = 1,
) -> Tensor:
    """Codes int64 (B, n) in the order of a path, several a step.

    Codes of a step are sampled independently of each other, each from the model's distribution
    given all codes of the steps before. The sequence is then read as it was in training.

    Args:
        prompt: (copies * B, T), see `decoding.generate`; `path` (copies * B, T + n).
        sizes: how many codes each step samples; together with those at the beginning that are
            known in all sequences they are n.
        pick: `pick(logits, done)` chooses codes (B, k), of which the first is the `done`-th, from
            logits (copies * B, k, V).
        on_step: called with the codes so far (B, n), and how many there are.
        known: (B, n) codes in the order of the path, -1 where one is to be sampled.
    """
    length = path.shape[1] - prompt.shape[1]
    empty = prompt.new_zeros(len(prompt) // copies, length)
    codes = empty if known is None else known.clamp(min=0)
    done, fed = length - sum(sizes), 0
    decoder.begin(prompt, path)
    for size in sizes:
        sequence = torch.cat((prompt, codes[:, :done].repeat(copies, 1)), dim=1)
        logits = decoder.foresee(sequence[:, fed:], size)  # (copies * B, size, V)
        new, step = pick(logits, done), slice(done, done + size)
        kept = None if known is None else known[:, step]
        codes[:, step] = new if kept is None else torch.where(kept >= 0, kept, new)
        done, fed = done + size, sequence.shape[1]
        if on_step is not None:
            on_step(codes, done)
    return codes

"""How long sampling will take, before it begins."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from statistics import mean

import torch
from tqdm import tqdm

from taming.devices import own_share
from taming.limits import readable_time
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.decoding import segment_at
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.own_methods import OwnMethods, weights_for
from taming.sampling.engine import Progress, sample_images
from taming.sampling.requests import Request
from taming.sampling.settings import SampleSettings
from taming.sampling.sizes import pixels_per_token, trained_shape
from taming.sampling.sliding_window import Corner, Layout

MOST_COUNTED = 2**15  # tokens of an image whose windows are counted one by one
MEASURED_TOKENS = 8  # at the training size, where all tokens but the first take about as long


def announced(
    model: Net2NetTransformer,
    requests: Iterable[Request],
    settings: SampleSettings,
    batch_size: int,
    shape: tuple[int, int] | None,
    *,
    count: int | None = None,
) -> Iterator[Request]:
    """All `requests`; before the first, the first process prints what they are (`announce`).

    Nothing is printed of the training size (None): its images are drawn soon enough for a bar.
    """
    rest = iter(requests)
    if shape not in (None, trained_shape(model)) and own_share()[0] == 0:
        first = list(islice(rest, batch_size))
        if first:
            announce(model, first, settings, batch_size, shape, count=count)
        rest = chain(first, rest)
    yield from rest


def announce(
    model: Net2NetTransformer,
    requests: Sequence[Request],
    settings: SampleSettings,
    batch_size: int,
    shape: tuple[int, int],
    *,
    count: int | None = None,
) -> None:
    """Print what is sampled, at once, and then for how long; see `estimated_seconds`.

    `count` is the number of requests, of which `requests` may be the first; of one image if None.
    """
    factor, tokens = pixels_per_token(model), shape[0] * shape[1]
    known = requests[0].known if requests else None
    part = "" if known is None else f", of which {int((known < 0).sum()):,} are sampled"
    images = f"each of {count:,} images" if count and count > 1 else "each image"
    size = f"{shape[1] * factor} x {shape[0] * factor}"
    with tqdm.external_write_mode():  # bars make room
        print(f"{size} pixels are {tokens:,} tokens{part} for {images}", end="", flush=True)
        seconds = estimated_seconds(model, requests, settings, batch_size, shape, count=count)
        seconds /= 1 if count is not None else max(1, len(requests))
        print(f": about {readable_time(seconds)}", flush=True)


class _Enough(Exception):
    """What is measured has been seen."""


def estimated_seconds(
    model: Net2NetTransformer,
    requests: Sequence[Request],
    settings: SampleSettings,
    batch_size: int,
    shape: tuple[int, int],
    *,
    count: int | None = None,
) -> float:
    """Seconds that `sample_images` will take for images of `shape` tokens, by a short trial.

    `count` is the number of requests, if `requests` are only the first of them.
    """
    if not requests:
        return 0.0
    first, batches = requests[:batch_size], -(-(count or len(requests)) // batch_size)
    if shape != trained_shape(model):
        return batches * _seconds_by_windows(model, first, settings, shape)
    known = first[0].known
    tokens = shape[0] * shape[1] if known is None else int((known < 0).sum())
    seconds = _seconds_of_steps(model, first, settings)
    # The first step also reads the condition, and what is known before it.
    return batches * (seconds[0] + (tokens - 1) * mean(seconds[1:] or [0.0]))


def _seconds_of_steps(
    model: Net2NetTransformer, requests: Sequence[Request], settings: SampleSettings
) -> list[float]:
    """Of the first steps at the training size; of all at once, if the model takes no steps."""
    seconds: list[float] = []
    before, done = time.monotonic(), 0

    def note(progress: Progress) -> None:
        nonlocal before, done
        progress.indices[0, 0].item()  # the device is waited for
        now = time.monotonic()
        if progress.done > done:
            seconds.append(now - before)
        before, done = now, progress.done
        if len(seconds) == MEASURED_TOKENS:
            raise _Enough

    try:
        for _ in sample_images(model, requests, settings, batch_size=len(requests), on_step=note):
            pass
    except _Enough:
        pass
    return seconds or [time.monotonic() - before]


def _seconds_by_windows(
    model: Net2NetTransformer,
    requests: Sequence[Request],
    settings: SampleSettings,
    shape: tuple[int, int],
) -> float:
    """The tokens that all steps will read, times the seconds that a token and a step take.

    Of an image of very many tokens, those of a corner are counted, and the rest is like it.
    """
    first, (h, w) = requests[0], trained_shape(model)
    unknown = torch.ones(shape) if first.known is None else first.known < 0
    times = 1.0
    if unknown.numel() > MOST_COUNTED:
        shape = (min(shape[0], 6 * h), min(shape[1], 6 * w))
        times = float(unknown.sum()) / (shape[0] * shape[1])
        unknown = torch.ones(shape)
    layout = Layout(shape, (h, w))
    if first.condition is not None:
        before = h * w
    else:
        whole = (0.0, 0.0, 1.0, 1.0)
        before = len(first.prompt_in(whole) if first.prompt_in else first.prompt)
    rows = len(requests) * (2 if settings.guided else 1)
    weights = weights_for(model.transformer, rows=rows)
    kept = isinstance(weights, Weights)
    tokens = list(tokens_of_steps(layout, before, unknown.tolist(), kept))
    length = before + h * w - 1
    short, long = (_seconds_of_pass(weights, rows, n) for n in (1, length))
    slope = max(0.0, long - short) / max(1, length - 1)
    return times * sum(short + slope * (n - 1) for n in tokens)


def tokens_of_steps(
    layout: Layout, before: int, unknown: Sequence[Sequence[bool]], kept: bool = True
) -> Iterator[int]:
    """Tokens that the transformer reads of an image in each step of a `SlidingWindow`.

    `before` of them are the condition's in every window. Windows that serve one position are read
    from their start, others go on where they were left if keys and values are `kept`.
    """
    read: dict[Corner, int] = {}
    for step in layout.steps():
        tokens = 0
        for row, column in step:
            if unknown[row][column]:
                top, left = corner = layout.corner(row, column)
                seen = before + (row - top) * layout.window[1] + column - left
                tokens += seen - read.get(corner, 0)
                if kept and max(map(len, layout.served(corner))) > 1:
                    read[corner] = seen
        if tokens:
            yield tokens


@torch.inference_mode()
def _seconds_of_pass(weights: Weights | OwnMethods, rows: int, length: int) -> float:
    """Seconds in which `rows` of `length` tokens are read: the faster of two, as one warms up."""
    tokens = torch.zeros(rows, length, dtype=torch.int64, device=weights.device)
    columns = torch.arange(length, device=weights.device)
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        weights.logits([segment_at(tokens, 0, columns, weights.n_unmasked)])[0, 0].item()
        seconds.append(time.monotonic() - start)
    return min(seconds)

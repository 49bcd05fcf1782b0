"""How long sampling will take, before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from math import prod
from statistics import mean

import torch
from torch import Tensor
from tqdm import tqdm

from taming.devices import own_share
from taming.limits import readable_time
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.decoding import segment_at
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.masked import STEPS
from taming.modules.transformer.own_methods import OwnMethods, weights_for
from taming.sampling.any_order import sees_all_known, with_default_order
from taming.sampling.engine import Progress, check_settings, sample_images
from taming.sampling.masked_windows import corner_of
from taming.sampling.requests import Request
from taming.sampling.settings import RASTER, SampleSettings
from taming.sampling.sizes import pixels_per_token, trained_shape
from taming.sampling.window_steps import AnyOrderWindow, Step, Window
from taming.sampling.windows import Layout

MOST_COUNTED = 2**15  # tokens of an image whose windows are counted one by one
LONG_ENOUGH = 0.2  # seconds of decoding that tell of the rest
MOST_DOUBLED = 5
MEASURED_TOKENS = 8  # at the training size, where all tokens but the first take about as long


def announced(
    model: Net2NetTransformer,
    requests: Iterable[Request],
    settings: SampleSettings,
    batch_size: int,
    shape: tuple[int, int] | None,
    *,
    count: int | Callable[[], int] | None = None,
) -> Iterator[Request]:
    """All `requests`; before the first, the first process prints what they are (`announce`).

    Nothing is printed of the training size (None): its images are drawn soon enough for a bar. A
    `count` that takes time is a function.
    """
    rest = iter(requests)
    if shape not in (None, trained_shape(model)) and own_share()[0] == 0:
        check_settings(model, settings, shape)  # what is refused begins no line
        first = list(islice(rest, batch_size))
        if first:
            number = count() if callable(count) else count
            announce(model, first, settings, batch_size, shape, count=number)
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
    known = requests[0].known if requests else None
    with tqdm.external_write_mode():  # bars make room
        announce_size(model, shape, count, None if known is None else int((known < 0).sum()))
        announce_time(model, requests, settings, batch_size, shape, count=count)


def announce_size(
    model: Net2NetTransformer, shape: tuple[int, int], count: int | None, sampled: int | None
) -> None:
    """Print the beginning of a line: how large each of `count` images is.

    `sampled` of its tokens are; all of them if None.
    """
    factor, tokens = pixels_per_token(model), shape[0] * shape[1]
    part = "" if sampled is None else f", of which {sampled:,} are sampled"
    images = f"each of {count:,} images" if count and count > 1 else "each image"
    size = f"{shape[1] * factor} x {shape[0] * factor}"
    print(f"{size} pixels are {tokens:,} tokens{part} for {images}", end="", flush=True)


def announce_time(
    model: Net2NetTransformer,
    requests: Sequence[Request],
    settings: SampleSettings,
    batch_size: int,
    shape: tuple[int, int],
    *,
    count: int | None = None,
) -> None:
    """Print the end of the line of `announce_size`: for how long; arguments are of `announce`."""
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
    h, w = trained_shape(model)
    if model.masked and shape != (h, w):
        return batches * _seconds_of_masked(model, first, settings, shape)
    by_rows = shape[1] > w or (shape[0] > h and shape[1] == w)
    if by_rows or (sees_all_known(model, settings) and shape != (h, w)):
        return batches * _seconds_by_windows(model, first, settings, shape)
    known = first[0].known
    tokens = shape[0] * shape[1] if known is None else int((known < 0).sum())
    seconds = _seconds_of_steps(model, first, settings, shape)
    # The first step also reads the condition, and what is known before it.
    steps = min(settings.steps or (STEPS if model.masked else tokens), tokens)
    return batches * (seconds[0] + (steps - 1) * mean(seconds[1:] or [0.0]))


def _seconds_of_steps(
    model: Net2NetTransformer,
    requests: Sequence[Request],
    settings: SampleSettings,
    shape: tuple[int, int],
    most: int = MEASURED_TOKENS,
) -> list[float]:
    """Of the first steps; of all at once, if the model takes no steps."""
    seconds: list[float] = []
    before, done = time.monotonic(), 0

    def note(progress: Progress) -> None:
        nonlocal before, done
        progress.indices[0, 0].item()  # the device is waited for
        now = time.monotonic()
        if progress.done > done:
            seconds.append(now - before)
        before, done = now, progress.done
        if len(seconds) == most:
            raise _Enough

    with suppress(_Enough):
        for _ in sample_images(
            model, requests, settings, batch_size=len(requests), shape=shape, on_step=note
        ):
            pass
    return seconds or [time.monotonic() - before]


def _seconds_by_windows(
    model: Net2NetTransformer,
    requests: Sequence[Request],
    settings: SampleSettings,
    shape: tuple[int, int],
) -> float:
    """The steps, and the positions and tokens in them, times the seconds that each of these takes.

    Of an image of very many tokens, those of a corner are counted, and the rest is like it.
    """
    first, (h, w) = requests[0], trained_shape(model)
    h, any_order = min(h, shape[0]), sees_all_known(model, settings)
    settings = with_default_order(model, settings)
    decoding = len(requests) * _seconds_of_decoding(model, shape)
    unknown = torch.ones(shape, dtype=torch.bool) if first.known is None else first.known < 0
    times = 1.0
    # In any order, what is known costs nothing but to be read.
    if (int(unknown.sum()) if any_order else unknown.numel()) > MOST_COUNTED:
        if isinstance(settings.order, tuple):  # is of the whole image
            settings = replace(settings, order=RASTER)
        shape = (min(shape[0], 6 * h), min(shape[1], 6 * w))
        times = float(unknown.sum()) / (shape[0] * shape[1])
        unknown = torch.ones(shape, dtype=torch.bool)
    weights = weights_for(model.transformer, rows=len(requests) * (2 if settings.guided else 1))
    streams = [request.stream for request in requests]
    kind = AnyOrderWindow if any_order else Window
    window = kind(_prefix(first), (h, w), weights, settings, streams)
    steps = window.steps(Layout.of(shape, (h, w)), unknown.tolist())
    seconds = _seconds_of(model, requests, window)
    return decoding + times * sum(map(seconds, steps))


def _seconds_of_masked(
    model: Net2NetTransformer,
    requests: Sequence[Request],
    settings: SampleSettings,
    shape: tuple[int, int],
) -> float:
    """Of a model of masked codes at another size: every step reads the windows in which something
    is masked, mostly to the end, and one of a corner of the image tells how long each takes."""
    known, (h, w) = requests[0].known, trained_shape(model)
    corner = min(shape[0], 2 * h), min(shape[1], 2 * w)
    masked = torch.ones(shape) if known is None else known < 0
    places = masked.flatten().nonzero()[:, 0].tolist()
    windows = len({corner_of(Layout.of(shape, (h, w)), place) for place in places})
    of_corner = {corner_of(Layout.of(corner, (h, w)), place) for place in range(prod(corner))}
    steps = min(settings.steps or STEPS, len(places))
    settings = replace(settings, steps=min(steps, prod(corner)) or None)
    tried = [request.cut_to(*corner) for request in requests]
    first = _seconds_of_steps(model, tried, settings, corner, most=1)[0]
    decoding = len(requests) * _seconds_of_decoding(model, shape)
    return decoding + steps * first * windows / len(of_corner)


def _prefix(request: Request) -> int | None:
    """How many tokens of the condition every window begins with; None for a map."""
    return None if isinstance(request.whole, Tensor) else len(request.whole)


def _seconds_of(
    model: Net2NetTransformer, requests: Sequence[Request], window: Window
) -> Callable[[Step], float]:
    """From a step to its seconds, which are those of a token, a position and the step itself.

    Steps of one position and of several are tried out; the seconds of a token are the transformer's
    alone. Where a transformer is small, or windows few tokens long, positions take the most.
    """
    short, long = (_seconds_of_pass(window.weights, window.rows, n) for n in (1, window.length))
    token = max(0.0, long - short) / max(1, window.length - 1)
    rest: dict[int, float] = {}  # by the number of positions
    for step, seconds in _tried(model, requests, window):
        beside = max(0.0, seconds - token * step.tokens)
        rest[step.positions] = min(beside, rest.get(step.positions, beside))
    (fewest, least), (most, longest) = min(rest.items()), max(rest.items())
    position = max(0.0, longest - least) / max(1, most - fewest)
    once = max(0.0, least - position * fewest)
    return lambda step: once + position * step.positions + token * step.tokens


def _tried(
    model: Net2NetTransformer, requests: Sequence[Request], window: Window
) -> list[tuple[Step, float]]:
    """Steps of one position and of several, two of each, with the seconds that they took."""
    h, w = window.sides
    rows = min(h, 3)
    shape = (h, max(2, rows) * w)
    unknown = torch.zeros(shape, dtype=torch.bool)
    last = shape[1] - w + w // 2  # where a step can have a position in every row
    unknown[0, :2] = True
    for row in range(rows):
        unknown[row, last - row * w - 1 : last - row * w + 1] = True
    window = window.code_by_code()
    steps = list(window.steps(Layout(shape, (h, w)), unknown.tolist()))
    known = torch.where(unknown, -1, 0)
    tried = [replace(request, known=known) for request in requests]
    if isinstance(requests[0].condition, Tensor):
        tried = [replace(request, condition=torch.zeros_like(known)) for request in tried]
    seconds = _seconds_of_steps(model, tried, window.settings, shape, len(steps))
    return list(zip(steps, seconds, strict=True))


@torch.no_grad()
def _seconds_of_decoding(model: Net2NetTransformer, shape: tuple[int, int]) -> float:
    """Of one image, by a part of it that takes long enough to be like the whole."""
    (channels, *_), (h, w) = model.latent_shape(), trained_shape(model)
    for times in range(MOST_DOUBLED + 1):
        height, width = min(shape[0], h << times), min(shape[1], w << times)
        indices = torch.zeros(1, height * width, dtype=torch.int64, device=model.device)
        start = time.monotonic()
        model.decode_to_img(indices, (1, channels, height, width))[0, 0, 0, 0].item()
        seconds = time.monotonic() - start
        if seconds > LONG_ENOUGH or (height, width) == shape:
            break
    return seconds * shape[0] * shape[1] / (height * width)


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

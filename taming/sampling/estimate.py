"""How long sampling will take, before it begins."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling.engine import Progress, sample_images
from taming.sampling.requests import Request
from taming.sampling.settings import SampleSettings
from taming.sampling.sizes import trained_shape

MEASURED_TOKENS = 8  # at the training size, where all tokens take about as long


class _Enough(Exception):
    """What is measured has been seen."""


def estimated_seconds(
    model: Net2NetTransformer,
    requests: Sequence[Request],
    settings: SampleSettings,
    batch_size: int,
    shape: tuple[int, int],
) -> float:
    """Seconds that `sample_images` will take for an image of `shape` tokens, by a short trial."""
    if not requests:
        return 0.0
    first, batches = requests[:batch_size], -(-len(requests) // batch_size)
    known = first[0].known
    tokens = shape[0] * shape[1] if known is None else int((known < 0).sum())
    if shape == trained_shape(model):
        return batches * tokens * _seconds_per_token(model, first, settings, shape)
    rows = len(first) * (2 if settings.guided else 1)
    return batches * tokens * _seconds_per_window(model, rows)


def _seconds_per_token(
    model: Net2NetTransformer,
    requests: Sequence[Request],
    settings: SampleSettings,
    shape: tuple[int, int],
) -> float:
    done = 0

    def count(progress: Progress) -> None:
        nonlocal done
        done = progress.done
        if done >= MEASURED_TOKENS:
            raise _Enough

    start = time.monotonic()
    try:
        for _ in sample_images(
            model, requests, settings, batch_size=len(requests), shape=shape, on_step=count
        ):
            pass
    except _Enough:
        pass
    # Where all tokens come from one pass, none is reported.
    return (time.monotonic() - start) / (done or shape[0] * shape[1])


@torch.no_grad()
def _seconds_per_window(model: Net2NetTransformer, rows: int) -> float:
    """One pass over the tokens of a whole window, as most positions of a large image need it."""
    gpt, (height, width) = model.transformer, trained_shape(model)
    length = min(gpt.get_block_size(), 2 * height * width)
    tokens = torch.zeros(rows, length, dtype=torch.int64, device=gpt.pos_emb.device)
    gpt(tokens[:, :1])  # the first pass also prepares kernels
    start = time.monotonic()
    gpt(tokens)[0].sum().item()  # the number is waited for
    return time.monotonic() - start


def in_words(seconds: float) -> str:
    """A time such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

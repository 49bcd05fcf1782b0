"""The engine: requests go in, samples come out, in order, in full batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from taming.errors import UserError
from taming.sampling.settings import SampleSettings, uniforms
from taming.sampling.token_sampler import Box, OnStep, TokenDrawer


@dataclass(frozen=True)
class Request:
    """One image to draw.

    Attributes:
        number: the sample's number (within its class); with the seed, it decides the image.
        prompt: indices that the transformer sees first: the condition's, or the start token.
        label: the class, None where there are none.
        condition: a map of the condition's indices, int64 (H, W), instead of a prompt.
        prompt_in: at other sizes than the training's, the prompt for a window at (x0, y0, width,
            height), as shares of the image, instead of `prompt`: scenes say what is in the window.
        known: indices that are given and kept, int64 (H, W), -1 where there is none.
    """

    number: int
    prompt: tuple[int, ...] = ()
    label: int | None = None
    condition: Tensor | None = field(default=None, compare=False)
    prompt_in: Callable[[Box], Sequence[int]] | None = field(default=None, compare=False)
    known: Tensor | None = field(default=None, compare=False)

    @property
    def stream(self) -> int:
        """The random numbers it uses: classes do not share any, and do not depend on each other."""
        return (self.label or 0) * 2**32 + self.number


@dataclass(frozen=True)
class Sample:
    """A drawn image.

    Attributes:
        number, label: the request's.
        indices: int64 (H * W,), codebook indices in the transformer's (permuted) order.
        image: float32 (C, H, W), about [-1, 1].
        candidate, score: with rejection, the number that decided the image, and its score.
    """

    number: int
    label: int | None
    indices: Tensor
    image: Tensor
    candidate: int | None = None
    score: float | None = None


def sample_images(
    model: Any,
    requests: Iterable[Request],
    settings: SampleSettings | None = None,
    batch_size: int = 25,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    on_step: OnStep | None = None,
    shape: tuple[int, int] | None = None,
    compiled: bool = False,
) -> Iterator[Sample]:
    """Draw the requested images with a `Net2NetTransformer` in eval mode.

    Args:
        requests: read lazily, in batches that go across classes; prompts are equally long.
        seed: a sample depends on the seed, its number and its label alone.
        dtype: the transformer's precision (its own by default); images are decoded in the model's.
        on_step: called after every step of a batch.
        shape: height and width in tokens (see `taming.sampling.sizes`), the training's by default;
            any others are drawn through a sliding window.
        compiled: steps at the training size go through `torch.compile`: worth it for many batches.

    Raises:
        UserError: if prompt and image are longer than the transformer's block size, or a request's
            maps are of another size.
    """
    channels, *trained = model.latent_shape()
    height, width = shape or trained
    draw = TokenDrawer(
        model, settings or SampleSettings(), batch_size, (height, width), dtype, on_step, compiled
    )
    device = model.transformer.pos_emb.device
    for batch in _batches(requests, batch_size):
        numbers = uniforms(seed, [request.stream for request in batch], height * width)
        known = _known(batch, (height, width))
        indices = draw(
            _conditions(batch).to(device),
            numbers.to(device),
            None if known is None else known.to(device),
            _prompts_in(batch),
        )
        with torch.no_grad():
            images = model.decode_to_img(indices, (len(batch), channels, height, width))
        parts = zip(batch, indices.cpu(), images.float().cpu(), strict=True)
        for request, row, image in parts:
            yield Sample(request.number, request.label, row, image)


def _conditions(batch: Sequence[Request]) -> Tensor:
    """int64 [B, n], or [B, H, W]."""
    maps = [request.condition for request in batch if request.condition is not None]
    return torch.stack(maps) if maps else torch.tensor([request.prompt for request in batch])


def _prompts_in(batch: Sequence[Request]) -> Callable[[Box], Tensor] | None:
    """int64 [B, n] for a window, where the requests have prompts for windows."""
    prompts = [request.prompt_in for request in batch if request.prompt_in is not None]
    if not prompts:
        return None
    return lambda box: torch.tensor([list(prompt(box)) for prompt in prompts])


def _known(batch: Sequence[Request], shape: tuple[int, int]) -> Tensor | None:
    """int64 [B, H, W], None where nothing is known."""
    if all(request.known is None for request in batch):
        return None
    nothing = torch.full(shape, -1)
    known = [nothing if request.known is None else request.known for request in batch]
    for indices in known:
        if tuple(indices.shape) != tuple(shape):
            raise UserError(
                f"the known indices are {tuple(indices.shape)}, but the image is {tuple(shape)}"
            )
    return torch.stack(known)


def _batches(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    iterator = iter(requests)
    while batch := list(islice(iterator, size)):
        yield batch

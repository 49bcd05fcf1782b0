"""The engine: requests go in, samples come out, in order, in full batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling.requests import Request
from taming.sampling.settings import SampleSettings, uniforms
from taming.sampling.sizes import trained_shape
from taming.sampling.sliding_window import Box
from taming.sampling.token_sampler import OnStep, TokenSampler


@dataclass(frozen=True)
class Sample:
    """A sampled image.

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
    model: Net2NetTransformer,
    requests: Iterable[Request],
    settings: SampleSettings | None = None,
    *,
    batch_size: int = 25,
    seed: int = 0,
    shape: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
    on_step: OnStep | None = None,
    compiled: bool = False,
) -> Iterator[Sample]:
    """Sample the requested images with a model in eval mode.

    Args:
        requests: read lazily, in batches that go across classes; prompts are equally long.
        seed: a sample depends on the seed, its number and its label alone.
        shape: height and width in tokens (see `taming.sampling.sizes`), the training's by default;
            any others are sampled through a sliding window.
        dtype: the transformer's precision (its own by default); images are decoded in the model's.
        on_step: called after every step of a batch.
        compiled: steps at the training size go through `torch.compile`: worth it for many batches.

    Raises:
        UserError: if prompt and image are longer than the transformer's block size, or a request's
            maps are of another size.
    """
    channels, _, _ = model.latent_shape()
    height, width = shape or trained_shape(model)
    sample_tokens = TokenSampler(
        model,
        settings or SampleSettings(),
        (height, width),
        batch_size=batch_size,
        dtype=dtype,
        on_step=on_step,
        compiled=compiled,
    )
    device = model.transformer.pos_emb.device
    for batch in _batches(requests, batch_size):
        # One random number for every token: (B, H * W).
        numbers = uniforms(seed, [request.stream for request in batch], height * width)
        known = _known(batch, (height, width))
        indices = sample_tokens(  # (B, H * W)
            _conditions(batch).to(device),
            numbers.to(device),
            known=None if known is None else known.to(device),
            prompts_in=_prompts_in(batch),
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
    """Prompts int64 [B, n] by window; None if the requests have the same for every window."""
    prompts = [request.prompt_in for request in batch if request.prompt_in is not None]
    if not prompts:
        return None
    return lambda box: torch.tensor([list(prompt(box)) for prompt in prompts])


def _known(batch: Sequence[Request], shape: tuple[int, int]) -> Tensor | None:
    """int64 [B, H, W], -1 at positions to sample; None if nothing is known."""
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

"""The engine: requests go in, samples come out, in order, in full batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from taming.modules.transformer.decoding import CachedDecoder, generate, one_pass_logits
from taming.sampling.settings import SampleSettings, uniforms


@dataclass(frozen=True)
class Request:
    """One image to draw.

    Attributes:
        number: the sample's number (within its class); with the seed, it decides the image.
        prompt: indices that the transformer sees first: the condition's, or the start token.
        label: the class, None where there are none.
    """

    number: int
    prompt: tuple[int, ...]
    label: int | None = None

    @property
    def stream(self) -> int:
        """The random numbers it uses: classes do not share any, and do not depend on each other."""
        return (self.label or 0) * 2**32 + self.number


@dataclass(frozen=True)
class Sample:
    """A drawn image.

    Attributes:
        number, label: the request's.
        indices: int64 (h * w,), codebook indices in the transformer's (permuted) order.
        image: float32 (C, H, W), about [-1, 1].
    """

    number: int
    label: int | None
    indices: Tensor
    image: Tensor


def sample_images(
    model: Any,
    requests: Iterable[Request],
    settings: SampleSettings | None = None,
    batch_size: int = 25,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[Sample]:
    """Draw the requested images with a `Net2NetTransformer` in eval mode, at its training size.

    Args:
        requests: read lazily, in batches that go across classes; prompts are equally long.
        seed: a sample depends on the seed, its number and its label alone.
        dtype: the transformer's precision (its own by default); images are decoded in the model's.
        on_step: called with (tokens drawn, tokens per image) after every token of a batch.

    Raises:
        UserError: if prompt and image are longer than the transformer's block size.
    """
    draw = _TokenDrawer(model, settings or SampleSettings(), batch_size, dtype, on_step)
    channels, height, width = model.latent_shape()
    device = model.transformer.pos_emb.device
    for batch in _batches(requests, batch_size):
        prompt = torch.tensor([request.prompt for request in batch], device=device)
        numbers = uniforms(seed, [request.stream for request in batch], height * width)
        indices = draw(prompt, numbers.to(device))
        with torch.no_grad():
            images = model.decode_to_img(indices, (len(batch), channels, height, width))
        parts = zip(batch, indices.cpu(), images.float().cpu(), strict=True)
        for request, row, image in parts:
            yield Sample(request.number, request.label, row, image)


def _batches(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    iterator = iter(requests)
    while batch := list(islice(iterator, size)):
        yield batch


class _TokenDrawer:
    """Draws the indices of a batch's images; its decoder serves all batches."""

    def __init__(
        self,
        model: Any,
        settings: SampleSettings,
        batch_size: int,
        dtype: torch.dtype | None,
        on_step: Callable[[int, int], None] | None,
    ) -> None:
        self.n_codes = model.n_codes  # the vocabulary may have tokens that are none
        self.gpt, self.at_once = model.transformer, model.pkeep <= 0
        self.settings, self.batch_size, self.dtype = settings, batch_size, dtype
        self.on_step = on_step
        self.decoder: CachedDecoder | None = None

    def __call__(self, prompt: Tensor, uniform: Tensor) -> Tensor:
        """Indices (B, steps) after `prompt` (B, n), by the random numbers `uniform` (B, steps)."""
        if self.at_once:
            return self._draw_at_once(prompt, uniform)
        steps = uniform.shape[1]
        if self.decoder is None:
            length = prompt.shape[1] + steps - 1
            self.decoder = CachedDecoder(self.gpt, self.batch_size, length, self.dtype)

        def pick(logits: Tensor, n: int) -> Tensor:
            token = self.settings.pick(logits[:, : self.n_codes], uniform[:, n])
            if self.on_step is not None:
                self.on_step(n + 1, steps)
            return token

        return generate(self.decoder, prompt, steps, pick)

    @torch.no_grad()
    def _draw_at_once(self, prompt: Tensor, uniform: Tensor) -> Tensor:
        logits = one_pass_logits(self.gpt, prompt, uniform.shape[1])[..., : self.n_codes]
        return self.settings.pick(logits.flatten(0, 1), uniform.flatten()).view(uniform.shape)

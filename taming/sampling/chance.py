"""What chance decides of the images of a batch, by each one's seed and number alone."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taming.sampling.settings import SampleSettings, uniforms


@dataclass
class Chance:
    """Chooses the codes of images, of which there are `length` each, with the random numbers of the
    samples `streams` (see `Request.stream`)."""

    settings: SampleSettings
    n_codes: int | None  # further tokens stand for conditions; None: none do
    seed: int
    streams: Sequence[int]
    length: int
    device: torch.device
    uniform: Tensor = field(init=False)  # (B, length), a number in [0, 1) for every code
    top_k: Tensor | None = field(init=False)  # int64 (B,); None: one k for all, of the settings

    def __post_init__(self) -> None:
        own_k = self.settings.own_top_k(self.seed, self.streams)
        self.uniform = uniforms(self.seed, self.streams, self.length).to(self.device)
        self.top_k = None if own_k is None else torch.tensor(own_k).to(self.device)

    def of(self, images: Sequence[int]) -> Chance:
        """That of some images of the batch."""
        part, rows = copy(self), list(images)
        part.streams = [self.streams[n] for n in rows]
        part.uniform = self.uniform[rows]
        part.top_k = None if self.top_k is None else self.top_k[rows]
        return part

    def pick(self, logits: Tensor, n: int) -> Tensor:
        """The n-th codes (B,) from logits (copies * B, V)."""
        guided = self.guide(logits, n / self.length)
        if self.top_k is None:
            return self.settings.pick(guided, self.uniform[:, n])
        return self.settings.pick(guided, self.uniform[:, n], self.top_k)

    def pick_from(self, logits: Tensor, done: int) -> Tensor:
        """The codes (B, k) from the `done`-th on, from logits (copies * B, k, V)."""
        stop = done + logits.shape[1]
        return self.choose(self.guide(logits, done / self.length), self.uniform[:, done:stop])

    def guide(self, logits: Tensor, share: float | Sequence[float]) -> Tensor:
        """Logits (B, ..., n_codes) from logits (copies * B, ..., V), where a share of the image is
        there, or of each."""
        return self.settings.guide(logits[..., : self.n_codes], share)

    def choose(self, guided: Tensor, numbers: Tensor) -> Tensor:
        """Codes (B, k) from logits (B, k, n_codes), by `numbers` (B, k) in [0, 1)."""
        top_k = None if self.top_k is None else self.top_k.repeat_interleave(numbers.shape[1])
        codes = self.settings.pick(guided.flatten(0, 1), numbers.flatten(), top_k)
        return codes.view(numbers.shape)

    def numbers_of_steps(self, steps: int) -> Tensor:
        """Numbers in [0, 1) (B, steps, 2, length): of each step one for every code, and one that
        decides whether it is kept."""
        numbers = uniforms(self.seed, self.streams, steps * 2 * self.length)
        return numbers.view(-1, steps, 2, self.length).to(self.device)

    def orders(self) -> Tensor:
        """In which order the codes of each image are sampled, int64 (B, length)."""
        orders = self.settings.own_orders(self.seed, self.streams, self.length)
        return orders.to(self.device)

"""The engine: requests go in, samples come out, in order, in full batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

import torch
from torch import Tensor

from taming.errors import UserError, shorten
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.decoding import CachedDecoder, Decoder, generate, known_or
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.own_methods import (
    OwnMethods,
    decoder_for,
    one_pass_logits,
    weights_for,
)
from taming.modules.transformer.permuter import Identity
from taming.modules.transformer.plain import device_of
from taming.sampling.any_order import (
    check_way,
    fill_in_masked,
    reads_in_place,
    sample_in_any_order,
    sees_all_known,
    with_default_order,
)
from taming.sampling.any_order_windows import sample_in_windows
from taming.sampling.chance import Chance
from taming.sampling.masked_windows import MaskedWindows
from taming.sampling.requests import Request, conditions_of, known_of, sampled_of_first
from taming.sampling.settings import SampleSettings
from taming.sampling.sizes import pixels_per_token, trained_shape
from taming.sampling.sliding_window import SlidingWindow, layout_for
from taming.sampling.windows import Box, Conditions, Layout, check_tokens


@dataclass(frozen=True)
class Sample:
    """A sampled image; `number` and `label` are the request's."""

    number: int
    label: int | None
    indices: Tensor  # int64 (H * W,), codebook indices in the transformer's (permuted) order
    image: Tensor  # float32 (C, H, W), about [-1, 1]; labels as colors
    candidate: int | None = None  # with rejection, the number that decided the image
    score: float | None = None  # of this candidate
    top_k: int | None = None  # its own, if there are several (see `SampleSettings`)


def rounds_by_batch(dtype: torch.dtype) -> bool:
    """Whether samples depend on how many are computed at once, as they do in bf16."""
    return dtype is not torch.float32


def raster_indices(model: Net2NetTransformer, sample: Sample) -> Tensor:
    """A sample's indices int64 (H * W,) row by row, of whatever order they were sampled in."""
    indices = sample.indices[None].to(device_of(model.transformer))
    return cast(Tensor, model.permuter(indices, reverse=True))[0].cpu()


@dataclass(frozen=True)
class Progress:
    """How far a batch is: `done` of `total` indices that are sampled of each of its images.

    Those that are known in all images of the batch do not count.
    """

    done: int
    total: int
    indices: Tensor  # int64 (B, H * W), in the transformer's order; what is not done is arbitrary


OnStep = Callable[[Progress], None]


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
    filled: bool = False,
) -> Iterator[Sample]:
    """Sample the requested images with a model in eval mode.

    Args:
        requests: read lazily, in batches that go across classes; prompts are equally long.
        seed: a sample depends on the seed, its number and its label alone; in bf16 also on how
            many are computed at once (see `rounds_by_batch`).
        shape: height and width in tokens (see `taming.sampling.sizes`), the training's by default;
            any others are sampled through a sliding window.
        dtype: the transformer's precision (its own by default); images are decoded in the model's.
        on_step: called after every step of a batch.
        compiled: steps at the training size go through `torch.compile`: worth it for many batches.
        filled: a last batch that is smaller is filled up with copies. Products of other shapes
            round differently, which in bf16 decides now and then: so they have one shape.

    Raises:
        UserError: if prompt and image are longer than the transformer's block size, a request's
            maps are of another size, guidance is asked of a model that was not trained for it, or
            another size than the training's of a model with a permuter.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    model.warn_of_random_weights()
    sampler = TokenSampler(
        model,
        settings or SampleSettings(),
        shape or trained_shape(model),
        batch_size=batch_size,
        dtype=dtype,
        on_step=on_step,
        compiled=compiled,
    )
    channels, _, _ = model.latent_shape()
    requests = iter(requests)
    while batch := list(islice(requests, batch_size)):
        if wrong := [one for one in batch if not isinstance(one, Request)]:
            raise UserError(
                f"requests are made by requests_for_labels(model, labels=[3, 7], num_samples=4); "
                f"{shorten(wrong[0])} is none"
            )
        copies = batch[-1:] * (batch_size - len(batch)) if filled else []
        indices = sampler.sample([*batch, *copies], seed)  # (B, H * W)
        with torch.no_grad():
            images = model.decode_to_picture(indices, (len(indices), channels, *sampler.shape))
        parts = zip(batch, indices.cpu(), images.float().cpu(), strict=False)  # without the copies
        own_k = sampler.settings.own_top_k(seed, [request.stream for request in batch])
        for n, (request, row, image) in enumerate(parts):
            top_k = None if own_k is None else own_k[n]
            yield Sample(request.number, request.label, row, image, top_k=top_k)


def check_settings(
    model: Net2NetTransformer,
    settings: SampleSettings,
    shape: tuple[int, int],
    compiled: bool = False,
    advice: str = "leave the size out",
) -> None:
    """Refuse (`UserError`) settings, and a `shape` (height, width) in tokens, that a model does not
    sample by, before anything is computed; `advice` is what to do about another shape."""
    if settings.guided and not model.cond_drop:
        raise UserError(
            "guidance needs a model that was trained with cond_drop, and this one was not; "
            "leave guidance at 1"
        )
    check_way(model, settings, shape, compiled)
    trained = trained_shape(model)
    if shape != trained and not isinstance(model.permuter, Identity):
        factor, name = pixels_per_token(model), type(model.permuter).__name__
        own, other = (f"{rows * factor} x {columns * factor}" for rows, columns in (trained, shape))
        raise UserError(
            f"this model samples in the order {name}, which exists for images of {own} pixels "
            f"only, and this one has {other}; {advice}"
        )


@dataclass
class TokenSampler:
    """Samples the indices of batches of images, for `sample_images`; one decoder serves them all.

    With guidance, a batch has every image twice, with its condition and with the null token in its
    place: 2 B rows of logits, which become B by `SampleSettings.guide`.
    """

    model: Net2NetTransformer
    settings: SampleSettings
    shape: tuple[int, int]
    batch_size: int
    dtype: torch.dtype | None = None
    on_step: OnStep | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        self.gpt, self.n_codes = self.model.transformer, self.model.n_codes
        self.window = trained_shape(self.model)
        self.copies = 2 if self.settings.guided else 1
        check_settings(self.model, self.settings, self.shape, self.compiled)
        self.settings = with_default_order(self.model, self.settings)
        self._decoder: Decoder | None = None
        self._weights: Weights | OwnMethods | None = None

    def sample(self, batch: Sequence[Request], seed: int) -> Tensor:
        """Indices (B, H * W) in the transformer's order."""
        device, (height, width) = device_of(self.gpt), self.shape
        streams = [request.stream for request in batch]
        length = height * width
        chance = Chance(self.settings, self.n_codes, seed, streams, length=length, device=device)
        # (copies * B, n) or (copies * B, H, W)
        condition = self._with_null(conditions_of(batch).to(device))
        known = known_of(batch, self.shape)  # (B, H, W)
        known = None if known is None else known.to(device)
        if self.shape != self.window:
            for request in batch:
                check_tokens(self.model.vocab_size, request.whole)
            return self._sample_by_windows(batch, condition, chance, known)
        self.model.check_layout(math.prod(condition.shape[1:]), self.shape)
        if self.model.masked or self.model.reading.any:
            return self._sample_around(condition.flatten(1), chance, known)
        # The i-th known index in the order of sampling is not the i-th in the image's rows.
        ordered = None if known is None else cast(Tensor, self.model.permuter(known.flatten(1)))
        sample = self._sample_at_once if self.model.pkeep <= 0 else self._sample_in_order
        return sample(condition.flatten(1), chance, ordered)

    def _with_null(self, condition: Tensor) -> Tensor:
        """With guidance, the condition and below it, as further rows, the empty one."""
        if not self.settings.guided:
            return condition
        return torch.cat((condition, torch.full_like(condition, self.model.null_token)))

    def _report(self, done: int, sampled: Sequence[int], indices: Tensor) -> None:
        """`done` indices are there, of which `sampled[done]` had to be sampled."""
        if self.on_step is not None and sampled[-1]:
            self.on_step(Progress(sampled[done], sampled[-1], indices))

    def _sample_in_order(self, prompt: Tensor, chance: Chance, known: Tensor | None) -> Tensor:
        """One token after the other; `prompt` is (copies * B, n)."""
        steps = chance.uniform.shape[1]
        sampled = sampled_of_first(known, range(steps))
        return generate(
            self._decoder_of(prompt.shape[1] + steps - 1),
            prompt,
            steps,
            chance.pick,
            lambda tokens, n: self._report(n + 1, sampled, tokens),
            known=known,
            copies=self.copies,
        )

    def _decoder_of(self, length: int) -> Decoder:
        """For sequences of this length, as nothing reads the last token."""
        if self._decoder is None:
            rows = self.copies * self.batch_size
            self._decoder = decoder_for(self.gpt, rows, length, self.dtype, self.compiled)
        return self._decoder

    def _sample_around(self, prompt: Tensor, chance: Chance, known: Tensor | None) -> Tensor:
        """Of models that see what is known (B, H, W) wherever it lies; by rows."""
        rows = None if known is None else known.flatten(1)
        in_place = reads_in_place(self.model, self.settings)
        holes = torch.ones(1, chance.length) if rows is None else rows < 0
        # Of any order each lacks its own codes; else places count that one of them lacks.
        together = self.model.masked or in_place
        report = self._reporter(int(holes.any(0).sum() if together else holes.sum(1).max()))
        if self.model.masked:
            if self._weights is None:
                self._weights = weights_for(self.gpt, self.dtype, len(prompt) * chance.length)
            assert isinstance(self._weights, Weights)  # `check_way`
            token = self.model.mask_token
            return fill_in_masked(
                self._weights, prompt, rows, chance, mask_token=token, report=report
            )
        decoder = self._decoder_of(prompt.shape[1] + chance.length - 1)
        assert isinstance(decoder, CachedDecoder)
        return sample_in_any_order(decoder, prompt, known, chance, report, in_place=in_place)

    def _reporter(self, total: int) -> Callable[[Tensor, int], None]:
        """Of all indices, and how many are sampled of `total`."""

        def report(indices: Tensor, done: int) -> None:
            if self.on_step is not None and done > 0:
                self.on_step(Progress(done, total, indices))

        return report

    @torch.no_grad()
    def _sample_at_once(self, prompt: Tensor, chance: Chance, known: Tensor | None) -> Tensor:
        """All tokens from one pass: for models that were trained to read nothing but `prompt`."""
        steps = chance.uniform.shape[1]
        logits = one_pass_logits(self.gpt, prompt, steps)  # (copies * B, H * W, V)
        tokens = [chance.pick(logits[:, n], n) for n in range(steps)]
        return torch.stack([known_or(token, known, n) for n, token in enumerate(tokens)], dim=1)

    def _sample_by_windows(
        self, batch: Sequence[Request], condition: Tensor, chance: Chance, known: Tensor | None
    ) -> Tensor:
        if self._weights is None:
            self._weights = weights_for(self.gpt, self.dtype, self.copies * self.batch_size)
        prompts = [request.prompt_in for request in batch if request.prompt_in is not None]

        def condition_in(box: Box) -> Tensor:
            prompts_in_box = torch.tensor([prompt(box) for prompt in prompts])
            return self._with_null(prompts_in_box.to(condition.device))

        by_window = condition_in if prompts else None
        if self.model.masked or sees_all_known(self.model, self.settings):
            conditions = Conditions(condition, Layout.of(self.shape, self.window), by_window)
            return self._sample_around_in_windows(conditions, chance, known)
        layout, width = layout_for(self.gpt, condition, self.shape, self.window), self.shape[1]
        sampled = sampled_of_first(None if known is None else known.flatten(1), layout.order())
        sampler = SlidingWindow(
            self._weights, condition, layout, self.copies, by_window, trained=self.window
        )
        grid = sampler.sample(  # (B, H, W)
            lambda logits, row, column: chance.pick(logits, row * width + column),
            known,
            lambda grid, done: self._report(done, sampled, grid.flatten(1)),
        )
        return grid.flatten(1).clone()  # a copy that is no inference tensor

    def _sample_around_in_windows(
        self, conditions: Conditions, chance: Chance, known: Tensor | None
    ) -> Tensor:
        """Of models of any order or of masked codes, whose windows show all that is known."""
        assert isinstance(self._weights, Weights)  # `check_way`
        unknown = None if known is None else (known < 0).flatten(1)  # (B, H * W)
        if self.model.masked:
            total = chance.length if unknown is None else int(unknown.any(0).sum())
            token, report = self.model.mask_token, self._reporter(total)
            windows = MaskedWindows(self._weights, conditions, self.window, token)
            return windows.fill_in(known, chance, report)
        total = chance.length if unknown is None else int(unknown.sum(1).max())
        report = self._reporter(total)
        codes = sample_in_windows(
            self._weights, conditions, self.window, chance, known=known, report=report
        )
        return codes.clone()

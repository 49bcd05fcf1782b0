"""Samples of models that know more than one order: in which they are made, and how many codes at
once; and samples of models that fill in masked codes.

What is kept of an image is read first, row by row, wherever it lies; then the rest is sampled, by
default from there inwards. Models that were annealed to rows have forgotten that: by default they
sample row by row, and read what is kept in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.transformer_checks import grid_of, trained_shape
from taming.modules.transformer.decoding import CachedDecoder, generate
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.masked import (
    CONFIDENCE_NOISE,
    STEPS,
    Turn,
    confidence_in,
    fill_in,
    gumbel,
)
from taming.modules.transformer.orders import (
    COSINE,
    by_rows,
    generate_in_steps,
    in_order,
    inwards,
    kept_first,
    left_after,
    path_of,
    sizes_of,
)
from taming.modules.transformer.plain import block_size_of, is_plain
from taming.sampling.chance import Chance
from taming.sampling.settings import INWARDS, RASTER, SampleSettings
from taming.sampling.sizes import pixels_per_token
from taming.user_code import name_of


def check_way(
    model: Net2NetTransformer, settings: SampleSettings, shape: tuple[int, int], compiled: bool
) -> None:
    """Refuse (`UserError`) settings, and a `shape` (height, width) in tokens, that a model does not
    have: of a model that samples one code after the other in one order, steps and orders."""
    _check_options(model, settings)
    if (model.masked or model.reading.any) and not is_plain(model.transformer):
        raise UserError(
            f"{name_of(type(model.transformer))} has methods or parts of its own, and only GPTs as "
            "they are sample in any order or with attention: full"
        )
    _check_trained_size(model)
    _check_grid(model, shape)
    if compiled and (model.masked or settings.steps is not None):
        steps = "" if model.masked else ", or --steps"
        raise UserError(
            f"torch.compile is for one code after the other; leave --compile out{steps}"
        )
    settings.check_fits(shape[0] * shape[1])


def _check_trained_size(model: Net2NetTransformer) -> None:
    """Refuse a model of any order or masked codes whose positions are not those of its training."""
    if not (model.masked or model.reading.any):
        return
    height, width = trained_shape(model)
    needed = height * width + model.masked
    if needed > (size := block_size_of(model.transformer)):
        raise UserError(
            f"images of training have {height} x {width} codes by the first stage's "
            f"ddconfig.resolution, and block_size is {size}; set "
            "model.params.first_stage_config.params.ddconfig.resolution to the size of the images "
            "that the transformer was trained on"
        )


def _check_grid(model: Net2NetTransformer, shape: tuple[int, int]) -> None:
    """Refuse images below the grid of a model's positions, where it has one order."""
    grid = grid_of(model)
    if grid is None or model.masked or model.reading.any:
        return
    if any(side < least for side, least in zip(shape, grid, strict=True)):
        factor = pixels_per_token(model)
        height, width, *own = (side * factor for side in (*shape, *grid))
        raise UserError(
            f"this model's rope_grid is of images of {own[0]} x {own[1]} pixels, and samples none "
            f"that are smaller, such as {height} x {width}"
        )


def _check_options(model: Net2NetTransformer, settings: SampleSettings) -> None:
    """Refuse options of models of another kind, and those that would have no effect."""
    if settings.steps is not None and not (model.masked or model.reading.any):
        raise UserError(
            f"steps is {settings.steps}, but this model samples one code after the other; leave it "
            "out, or train with order: random or annealed, or attention: full"
        )
    if settings.step_schedule != COSINE and not model.masked and settings.steps is None:
        raise UserError(
            f"step_schedule is {settings.step_schedule}, but one code is sampled after the other; "
            "say steps as well, or leave it out"
        )
    if settings.order is not None and not model.reading.any:
        why = "fills in codes in no order" if model.masked else "has one order"
        raise UserError(f"order is for models of order: random or annealed, and this model {why}")
    if settings.confidence_noise != CONFIDENCE_NOISE and not model.masked:
        raise UserError(
            f"confidence_noise is {settings.confidence_noise}, but only models of attention: full "
            "choose by confidence which codes they keep; leave it out"
        )


def with_default_order(model: Net2NetTransformer, settings: SampleSettings) -> SampleSettings:
    """The settings, of a model that was annealed to rows in that order if they name none."""
    if not model.reading.ends_by_rows or settings.order is not None:
        return settings
    return replace(settings, order=RASTER)


def reads_in_place(model: Net2NetTransformer, settings: SampleSettings) -> bool:
    """Whether a model that was annealed to rows samples by rows, and reads what is known there."""
    by_rows = settings.steps is None and settings.order in (None, RASTER)
    return model.reading.ends_by_rows and by_rows


def sees_all_known(model: Net2NetTransformer, settings: SampleSettings) -> bool:
    """Whether what is known is read wherever it lies, before what is sampled."""
    return model.reading.any and not reads_in_place(model, settings)


def sample_in_any_order(
    decoder: CachedDecoder,
    prompt: Tensor,
    known: Tensor | None,
    chance: Chance,
    report: Callable[[Tensor, int], None],
    *,
    in_place: bool = False,
) -> Tensor:
    """Codes (B, n) by rows: those that are known first, then the others in the settings' orders.

    Args:
        prompt: (copies * B, T), of the condition.
        known: (B, h, w), -1 where to sample.
        report: called with all codes, by rows, and how many of them have been sampled.
        in_place: known codes are read at their places, and not first.
    """
    copies = len(prompt) // len(chance.streams)
    orders = chance.orders() if in_place else orders_of(chance, known)
    ordered = None if known is None else in_order(known.flatten(1), orders)
    path = path_of(orders, prompt.shape[1])
    if chance.settings.steps is not None:
        images = _Images(
            list(range(len(orders))), prompt, path, orders, known=ordered, chance=chance
        )
        return _sample_in_steps(decoder, images, report)
    missing = torch.ones_like(orders) if ordered is None else ordered < 0  # (B, n)
    sampled = missing.any(0).cumsum(0).tolist()  # how many are, after each place of the orders
    codes = generate(
        _OnPath(decoder, path.repeat(copies, 1)),
        prompt,
        chance.length,
        chance.pick,
        lambda codes, n: report(by_rows(codes, orders), sampled[n]),
        known=ordered,
        copies=copies,
    )
    return by_rows(codes, orders)


@dataclass(frozen=True)
class _Images:
    """Images that are sampled in steps.

    Attributes:
        numbers: in the batch, (B,).
        prompt: (copies * B, T), of the condition.
        path: (B, T + n), the positions of their sequences.
        orders: (B, n), of their codes.
        known: (B, n), codes in these orders, -1 where to sample; None: nothing.
        chance: what decides of them.
    """

    numbers: list[int]
    prompt: Tensor
    path: Tensor
    orders: Tensor
    known: Tensor | None
    chance: Chance

    def by_holes(self) -> dict[int, _Images]:
        """Those that have as many codes to sample as each other, by how many, the most first."""
        if self.known is None:
            return {self.chance.length: self}
        counts = (self.known < 0).sum(1).tolist()
        return {
            count: self._part([n for n, one in enumerate(counts) if one == count])
            for count in sorted(set(counts), reverse=True)
        }

    def _part(self, numbers: list[int]) -> _Images:
        if len(numbers) == len(self.numbers):
            return self
        at = torch.tensor(numbers, device=self.orders.device)
        prompt = self.prompt.unflatten(0, (-1, len(self.orders)))[:, at].flatten(0, 1)
        known = None if self.known is None else self.known[at]
        chance = self.chance.of(numbers)
        return _Images(numbers, prompt, self.path[at], self.orders[at], known=known, chance=chance)


def _sample_in_steps(
    decoder: CachedDecoder, images: _Images, report: Callable[[Tensor, int], None]
) -> Tensor:
    """Codes (B, n) by rows. Images of equal holes share steps, so that those of one do not depend
    on what is beside it; `report` is told of the image that has most left."""
    settings, by_holes = images.chance.settings, images.by_holes()
    known = torch.zeros_like(images.orders) if images.known is None else images.known
    codes = by_rows(known.clamp(min=0), images.orders)
    most = max(by_holes)
    copies = len(images.prompt) // len(images.orders)
    for count, later in zip(by_holes, [*list(by_holes)[1:], 0], strict=True):
        part = by_holes[count]
        at = torch.tensor(part.numbers, device=codes.device)

        def on_step(
            ordered: Tensor, done: int, part: _Images = part, at: Tensor = at, later: int = later
        ) -> None:
            codes[at] = by_rows(ordered, part.orders)
            report(codes, most - max(part.chance.length - done, later))

        ordered = generate_in_steps(
            decoder,
            part.prompt,
            part.path.repeat(copies, 1),
            sizes_of(left_after(count, settings.steps or count, settings.step_schedule), count),
            part.chance.pick_from,
            on_step=on_step,
            known=part.known,
            copies=copies,
        )
        codes[at] = by_rows(ordered, part.orders)
    return codes


def orders_of(chance: Chance, known: Tensor | None) -> Tensor:
    """Orders (B, n), with what is `known` (B, h, w) first."""
    settings = chance.settings
    if known is None:
        return chance.orders()
    if (settings.order or settings.default_order) == INWARDS:
        return inwards(known)
    return kept_first(chance.orders(), known.flatten(1))


class _OnPath:
    """A decoder that reads its prompts, and what follows, on a path (copies * B, T + n)."""

    def __init__(self, decoder: CachedDecoder, path: Tensor) -> None:
        self.decoder, self.path = decoder, path

    def prefill(self, idx: Tensor, /) -> Tensor:
        self.decoder.begin(idx, self.path)
        return self.decoder.foresee(idx, 1)[:, 0]

    def extend(self, idx: Tensor, /) -> Tensor:
        return self.decoder.extend(idx)


def fill_in_masked(
    weights: Weights,
    prompt: Tensor,
    known: Tensor | None,
    chance: Chance,
    *,
    mask_token: int,
    report: Callable[[Tensor, int], None],
    read: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Codes (B, n) of a model with `attention: full`; arguments are of `sample_in_any_order`, and
    `read` is of `masked.fill_in`."""
    settings = chance.settings
    if known is None:
        known = prompt.new_full((len(chance.streams), chance.length), -1)
    steps = min(settings.steps or STEPS, chance.length)
    numbers, kept = chance.numbers_of_steps(steps), int((known >= 0).all(0).sum())

    def pick(logits: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        guided = chance.guide(logits, turn.shares)
        of_codes, of_noise = numbers[:, turn.number].unbind(1)  # (B, n) each
        codes = chance.choose(guided, of_codes)
        scale = settings.confidence_noise * turn.noise  # (B, 1)
        noise = scale * gumbel(of_noise) if settings.temperature else 0.0
        return codes, confidence_in(codes, guided, noise)

    return fill_in(
        weights,
        prompt,
        known,
        pick,
        mask_token=mask_token,
        steps=steps,
        schedule=settings.step_schedule,
        on_step=lambda codes, done: report(codes.clamp(min=0), done - kept),
        read=read,
    )

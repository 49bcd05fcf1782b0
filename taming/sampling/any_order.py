"""Samples of models that know more than one order: in which they are made, and how many codes at
once; and samples of models that fill in masked codes.

What is kept of an image is read first, row by row, wherever it lies; then the rest is sampled, by
default from there inwards.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.decoding import CachedDecoder, generate
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.masked import (
    CONFIDENCE_NOISE,
    STEPS,
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
from taming.modules.transformer.plain import is_plain
from taming.sampling.chance import Chance
from taming.sampling.settings import INWARDS, SampleSettings
from taming.sampling.sizes import trained_shape
from taming.user_code import name_of


def check_way(
    model: Net2NetTransformer, settings: SampleSettings, shape: tuple[int, int], compiled: bool
) -> None:
    """Refuse (`UserError`) settings, and a `shape` (height, width) in tokens, that a model does not
    have: of a model that samples one code after the other in one order, steps and orders."""
    _check_options(model, settings)
    codes = shape[0] * shape[1]
    if settings.steps is not None and settings.steps > codes:
        raise UserError(f"steps is {settings.steps}, but the image has {codes} codes")
    if isinstance(settings.order, tuple) and len(settings.order) != codes:
        places = len(settings.order)
        raise UserError(f"order has {places} places, and the image {codes}; name all")
    if (model.masked or model.reading.any) and not is_plain(model.transformer):
        raise UserError(
            f"{name_of(type(model.transformer))} has methods or parts of its own, and only GPTs as "
            "they are sample in any order or with attention: full"
        )
    if compiled and (model.masked or settings.steps is not None):
        steps = "" if model.masked else ", or --steps"
        raise UserError(
            f"torch.compile is for one code after the other; leave --compile out{steps}"
        )
    _check_shape(model, shape)


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


def _check_shape(model: Net2NetTransformer, shape: tuple[int, int]) -> None:
    """Refuse (`UserError`) other sizes than the training's of models of masked codes."""
    if model.masked and shape != (trained := trained_shape(model)):
        raise UserError(
            "a model of attention: full fills in images of its training's size only, "
            f"{trained[0]} x {trained[1]} codes, and not {shape[0]} x {shape[1]}; sample that size, "
            "or train with order: random"
        )


def sample_in_any_order(
    decoder: CachedDecoder,
    prompt: Tensor,
    known: Tensor | None,
    chance: Chance,
    report: Callable[[Tensor, int], None],
) -> Tensor:
    """Codes (B, n) by rows: those that are known first, then the others in the settings' orders.

    Args:
        prompt: (copies * B, T), of the condition.
        known: (B, h, w), -1 where to sample.
        report: called with all codes, by rows, and how many of them have been sampled.
    """
    settings, copies = chance.settings, len(prompt) // len(chance.streams)
    orders = orders_of(chance, known)
    ordered = None if known is None else in_order(known.flatten(1), orders)
    path = path_of(orders, prompt.shape[1]).repeat(copies, 1)
    unknown = chance.length if ordered is None else int((ordered < 0).any(0).sum())
    if settings.steps is None:
        codes = generate(
            _OnPath(decoder, path),
            prompt,
            chance.length,
            chance.pick,
            lambda codes, n: report(by_rows(codes, orders), n + 1 - chance.length + unknown),
            known=ordered,
            copies=copies,
        )
    else:
        left = left_after(unknown, settings.steps, settings.step_schedule)
        codes = generate_in_steps(
            decoder,
            prompt,
            path,
            sizes_of(left, unknown),
            chance.pick_from,
            on_step=lambda codes, done: report(
                by_rows(codes, orders), done - chance.length + unknown
            ),
            known=ordered,
            copies=copies,
        )
    return by_rows(codes, orders)


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
) -> Tensor:
    """Codes (B, n) of a model with `attention: full`; arguments are of `sample_in_any_order`."""
    settings = chance.settings
    if known is None:
        known = prompt.new_full((len(chance.streams), chance.length), -1)
    steps = min(settings.steps or STEPS, chance.length)
    numbers, kept = chance.numbers_of_steps(steps), int((known >= 0).all(0).sum())

    def pick(logits: Tensor, step: int, share: float) -> tuple[Tensor, Tensor]:
        guided = chance.guide(logits, share)
        codes = chance.choose(guided, numbers[:, step, 0])
        scale = settings.confidence_noise * (1 - (step + 1) / steps)
        noise = scale * gumbel(numbers[:, step, 1]) if settings.temperature else 0.0
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
    )

"""How tokens are sampled: the filters' settings, and random numbers that belong to a sample."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.command_line import flag, parse_numbers
from taming.errors import UserError, shorten
from taming.modules.transformer.masked import CONFIDENCE_NOISE, STEPS
from taming.modules.transformer.orders import COSINE
from taming.modules.transformer.orders import SCHEDULES as STEP_SCHEDULES
from taming.modules.transformer.token_choice import filter_logits, sample_token

# How much of the guidance applies, by the share of the image that is sampled.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}


TopK = int | tuple[int, ...] | None
Order = str | tuple[int, ...] | None
INWARDS, RASTER, RANDOM = ORDERS = ("inwards", "raster", "random")
MOST_NAMED = 12  # of a list, in the names of folders
_RAW = 2**64  # raw numbers of Philox are below it


def parse_top_k(text: str) -> TopK:
    """A number, or several of "100,200,300", which are a tuple without repetitions."""
    numbers = parse_numbers(text.strip())
    return numbers[0] if len(numbers) == 1 else numbers


def parse_order(text: str) -> Order:
    """One of `ORDERS`, or the places of "3,0,1,2" in the order in which they are sampled."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if text in ORDERS or not parts or not all(part.isdecimal() for part in parts):
        return text
    return tuple(map(int, parts))  # with repetitions, which are refused


def wrong_temperature(value: float) -> UserError:
    """What to raise for 0 as well, where several samples are to differ."""
    return UserError(
        f"temperature must be above 0 and finite, not {value} (0, the likeliest tokens alone, is "
        "for single samples)"
    )


@dataclass(frozen=True)
class TokenSettings:
    """Temperature, then top-k, then nucleus top-p (see `filter_logits`); and guidance.

    Of several k each sample has its own, see `own_top_k`.

    Classifier-free guidance (arXiv 2207.12598) moves the logits from those without the condition
    (scale 0) through those with it (scale 1: no guidance) and beyond. With a schedule other than
    "constant" the scale rises from 1 to `guidance` over the image. Values out of range are refused.
    """

    temperature: float = flag(1.0, "divides the logits; 0: always the likeliest token", "-t")
    top_k: TopK = flag(
        None,
        "sample among the k likeliest tokens only; of a list as 100,200,300 each sample has one, "
        "by seed and number; as published, sample_fast.py begins with more of them than scripts "
        "for conditions of data",
        "-k",
        parse=parse_top_k,
    )
    top_p: float = flag(1.0, "sample among the likeliest tokens that make up p only", "-p")
    guidance: float = flag(1.0, "scale of the guidance, for models trained with cond_drop")
    guidance_schedule: str = flag("constant", f"of the scale: {', '.join(SCHEDULES)}")

    def __post_init__(self) -> None:
        if isinstance(self.top_k, list):
            object.__setattr__(self, "top_k", tuple(self.top_k))
        self._check_types()
        if not 0 <= self.temperature < math.inf:
            raise wrong_temperature(self.temperature)
        if self.top_k is not None and min(self.top_ks, default=0) < 1:
            raise UserError(
                f"top_k must be at least 1, not {min(self.top_ks, default=0)}; a number as large "
                "as the codebook is no limit"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.guidance < math.inf:
            raise UserError(f"guidance must be 0 or more (1: none), not {self.guidance}")
        if self.guidance_schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise UserError(f"guidance_schedule is one of {known}, not '{self.guidance_schedule}'")

    def _check_types(self) -> None:
        for name in ("temperature", "top_p", "guidance"):
            if not isinstance(value := vars(self)[name], int | float):
                raise UserError(f"{name} is a number, not {shorten(value)}")
        for k in self.top_ks:
            if isinstance(k, bool) or not isinstance(k, Integral):
                raise UserError(f"top_k is a whole number, or several, not {shorten(k)}")

    @property
    def top_ks(self) -> tuple[int, ...]:
        """All values of k; none without a limit."""
        if isinstance(self.top_k, tuple):
            return self.top_k
        return () if self.top_k is None else (self.top_k,)

    @property
    def mixed(self) -> bool:
        """Whether each sample has its own k."""
        return isinstance(self.top_k, tuple)

    @property
    def top_k_name(self) -> str:
        """The value, or the values, of k for the name of a folder."""
        if not self.mixed:
            return str(self.top_k)
        text = "-".join(map(str, self.top_ks))
        if len(self.top_ks) <= MOST_NAMED:
            return text
        return f"{len(self.top_ks)}-values-{zlib.crc32(text.encode()):08x}"

    def describe(self) -> dict[str, Any]:
        """All settings as JSON values."""
        values = asdict(self)
        return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}

    def own_top_k(self, seed: int, sample_numbers: Sequence[int]) -> list[int] | None:
        """Of several k the one of each sample; None if there is one k for all.

        Each is as likely as the others, and decided by `seed` and the sample's number (with its
        class, see `Request.stream`) alone: Philox with both as its key, as for `uniforms`, counted
        from 2^128, where no sample's random numbers for its tokens are.
        """
        if not self.mixed:
            return None
        raw = [int(_philox(seed, number, 2**128).random_raw()) for number in sample_numbers]
        return [self.top_ks[number * len(self.top_ks) // _RAW] for number in raw]

    @property
    def guided(self) -> bool:
        """Whether the logits without the condition are needed."""
        return self.guidance != 1

    def guide(self, logits: Tensor, progress: float | Sequence[float]) -> Tensor:
        """Logits (B, ..., V) from `logits` (2 B, ..., V): with the condition, then without it.

        `progress` is the share of the image that is sampled, in [0, 1), or that of each of the B.
        Without guidance, `logits`.
        """
        if not self.guided:
            return logits
        conditional, free = logits.chunk(2)  # (B, ..., V) each
        if isinstance(progress, Sequence):
            scales = torch.tensor([self._scale(of_one) for of_one in progress])
            each = scales.to(logits).view(-1, *[1] * (logits.dim() - 1))
            return torch.lerp(free, conditional, each)
        return torch.lerp(free, conditional, self._scale(progress))

    def _scale(self, progress: float) -> float:
        """Of the guidance, where this share of an image is sampled."""
        return 1 + (self.guidance - 1) * SCHEDULES[self.guidance_schedule](progress)

    def pick(self, logits: Tensor, uniform: Tensor, top_k: Tensor | None = None) -> Tensor:
        """One token (B,) of `logits` (B, V), by the numbers `uniform` (B,) in [0, 1).

        `top_k` int64 (B,) is each row's own, of several.
        """
        if self.temperature == 0:
            return sample_token(logits)
        most = max(self.top_ks, default=None)
        k = most if top_k is None else top_k
        filtered = filter_logits(logits, self.temperature, k, self.top_p, most_k=most)
        return sample_token(filtered, uniform)


@dataclass(frozen=True)
class SampleSettings(TokenSettings):
    """How tokens are chosen, and for models that know several, in which order and in what steps."""

    order: Order = flag(
        None,
        "in which codes are sampled, for models of order: random or annealed: inwards (from what "
        "is kept into the holes; by rows, if nothing is), raster, random (each sample's own, by "
        "seed and number), or all places, as 3,0,1,2; by default random with --steps and inwards "
        "without, and raster for models that were annealed to it",
        parse=parse_order,
    )
    steps: int | None = flag(
        None,
        "sample in so many steps, several codes at once, for models of order: random or annealed "
        f"(default: a step per code) and of attention: full (default: {STEPS})",
    )
    step_schedule: str = flag(
        COSINE, f"how codes are shared out to --steps: {', '.join(STEP_SCHEDULES)}"
    )
    confidence_noise: float = flag(
        CONFIDENCE_NOISE,
        "times Gumbel noise, at the beginning, in which codes models of attention: full keep; 0: "
        "the likeliest",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.order, list):
            object.__setattr__(self, "order", tuple(self.order))
        self._check_steps()

    def _check_steps(self) -> None:
        steps, order = self.steps, self.order
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int)):
            raise UserError(f"steps is a whole number, not {shorten(steps)}")
        if steps is not None and steps < 1:
            raise UserError(f"steps must be at least 1, not {steps}")
        if self.step_schedule not in STEP_SCHEDULES:
            known = ", ".join(STEP_SCHEDULES)
            raise UserError(f"step_schedule is one of {known}, not '{self.step_schedule}'")
        if not isinstance(self.confidence_noise, int | float):
            raise UserError(f"confidence_noise is a number, not {shorten(self.confidence_noise)}")
        if not 0 <= self.confidence_noise < math.inf:
            raise UserError(f"confidence_noise must be 0 or more, not {self.confidence_noise}")
        if isinstance(order, tuple):
            _check_places(order)
        elif order not in (None, *ORDERS):
            raise UserError(f"order is {', '.join(ORDERS)}, or all places in a list, not '{order}'")

    def check_fits(self, codes: int) -> None:
        """Refuse (`UserError`) steps and places for images of another number of codes."""
        if self.steps is not None and self.steps > codes:
            raise UserError(f"steps is {self.steps}, but the image has {codes} codes")
        if not isinstance(self.order, tuple):
            return
        if len(self.order) != codes:
            raise UserError(f"order has {len(self.order)} places, and the image {codes}; name all")
        if (last := max(self.order)) >= codes:
            raise UserError(f"order has places from 0 to {codes - 1}, not {last}")

    def name_of_steps(self) -> str:
        """What is said of steps and order in the names of folders; nothing by default."""
        parts = []
        if self.steps is not None:
            parts.append(f"_steps_{self.steps}_{self.step_schedule}")
        if self.order is not None:
            text = ",".join(map(str, self.order)) if isinstance(self.order, tuple) else self.order
            named = text if text in ORDERS else f"{zlib.crc32(text.encode()):08x}"
            parts.append(f"_order_{named}")
        if self.confidence_noise != CONFIDENCE_NOISE:
            parts.append(f"_noise_{self.confidence_noise}")
        return "".join(parts)

    @property
    def default_order(self) -> str:
        """Codes of one step do not see each other, so that they should be no neighbors."""
        return INWARDS if self.steps is None else RANDOM

    def own_orders(self, seed: int, sample_numbers: Sequence[int], length: int) -> Tensor:
        """In which order each sample's `length` codes are sampled: int64 (samples, length).

        A random one is decided by `seed` and the sample's number alone, as is `own_top_k`; from
        what is kept inwards, it depends on that, and is by rows here.
        """
        rows, order = len(sample_numbers), self.order
        if isinstance(order, tuple):
            return torch.tensor(order).expand(rows, -1)
        if (order or self.default_order) == RANDOM:
            raw = [_philox(seed, number, 2**129).random_raw(length) for number in sample_numbers]
            return torch.from_numpy(np.argsort(np.stack(raw), axis=1, kind="stable"))
        return torch.arange(length).expand(rows, -1)


def _check_places(order: tuple[Any, ...]) -> None:
    """Refuse what are no places; how many an image has is known later, see `check_fits`."""
    for place in order:
        if isinstance(place, bool) or not isinstance(place, Integral) or place < 0:
            raise UserError(f"order has places from 0 on, not {shorten(place)}")
    if twice := [place for place in order if order.count(place) > 1]:
        raise UserError(f"order has each place once, and {twice[0]} is there twice")


def uniforms(seed: int, sample_numbers: Sequence[int], steps: int) -> Tensor:
    """Random numbers in [0, 1): float32 (len(sample_numbers), steps).

    Row i depends on `seed` and `sample_numbers[i]` alone, so that a sample is the same in any
    batch, on any device and in any order. The generator is Philox with both as its key.
    """
    rows = [_philox(seed, number).random_raw(steps) for number in sample_numbers]
    # The upper 24 bits are what a float32 below 1 can hold exactly.
    numbers = (np.stack(rows) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy(numbers)


def _philox(seed: int, number: int, start: int = 0) -> np.random.Philox:
    """The random numbers of a sample, from the `start`-th block of four on."""
    return np.random.Philox(key=np.array([seed % 2**64, number], np.uint64), counter=start)

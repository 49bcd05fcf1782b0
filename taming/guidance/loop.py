"""The loop: codes -> image -> cut-outs -> distance of the prompts, and a step down its gradient.

The way of VQGAN-CLIP (arXiv 2204.08583), for any first stage and any guide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from taming.command_line import flag
from taming.errors import UserError
from taming.guidance.code_grids import CodeGrids
from taming.guidance.cutouts import Chance
from taming.guidance.memory import check_step_memory
from taming.guidance.objective import Objective
from taming.guidance.points import RELAXATIONS, STRAIGHT_THROUGH, Latents, Logits, Point
from taming.guidance.start import Start, chance_for, random_start, trained_grid
from taming.models.first_stage import FirstStage, frozen

LATENT, LOGITS = "latent", "logits"
SCHEDULES = ("constant", "cosine")
MOST_STEPS = 1_000_000
FRAMES = 40  # of films of how an image came about, about


@dataclass(frozen=True, kw_only=True)
class GuideSettings:
    """How codes are optimized; values out of range are refused (`UserError`)."""

    optimize: str = flag(LATENT, f"{LATENT}, or {LOGITS} of all codes")
    steps: int = flag(300, "of the optimizer")
    lr: float = flag(
        0.1, "learning rate: of latents in deviations of the codebook, of logits in nats"
    )
    lr_schedule: str = flag("constant", f"of the learning rate: {' or '.join(SCHEDULES)}, to 0")
    weight_decay: float = flag(0.0, "AdamW's, of the way from the start, which leads back to it")
    init_weight: float = flag(0.0, "weight of the mean squared distance of the start")
    ema: float = flag(
        0.0, "decay of a moving average of what is optimized; its image is the result"
    )
    unquantized: bool = flag(False, "decode latents as they are, not their nearest codes")
    relaxation: str = flag(STRAIGHT_THROUGH, f"of logits: {', '.join(RELAXATIONS)}")
    gumbel_temperature: float = flag(1.0, "divides the logits")
    seed: int = flag(0, "decides each image, together with its number")

    def __post_init__(self) -> None:
        _require_one_of("optimize", self.optimize, (LATENT, LOGITS))
        _require_one_of("lr_schedule", self.lr_schedule, SCHEDULES)
        _require_one_of("relaxation", self.relaxation, RELAXATIONS)
        if not 1 <= self.steps <= MOST_STEPS:
            raise UserError(f"--steps must be from 1 to {MOST_STEPS:,}, not {self.steps}")
        if not 0 <= self.ema < 1:
            raise UserError(f"--ema must be from 0 to below 1, not {self.ema}")
        for name in ("lr", "gumbel_temperature"):
            if not 0 < vars(self)[name] < math.inf:
                raise UserError(f"--{name} must be above 0, not {vars(self)[name]}")
        for name in ("weight_decay", "init_weight"):
            if not 0 <= vars(self)[name] < math.inf:
                raise UserError(f"--{name} must be 0 or more, not {vars(self)[name]}")

    def describe(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return {entry.name: vars(self)[entry.name] for entry in fields(self)}


def _require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"--{name} takes {' or '.join(choices)}, not '{value}'")


@dataclass(frozen=True)
class GuideStep:
    """How far an image is: `done` of `total` steps."""

    done: int
    total: int
    loss: float
    image: Tensor  # float (C, H, W) in [-1, 1], from before the step

    @property
    def is_frame(self) -> bool:
        """Whether a film has it: about `FRAMES` of all steps, evenly."""
        return self.done * FRAMES // self.total != (self.done - 1) * FRAMES // self.total


@dataclass(frozen=True, eq=False)
class Guided:
    """An image that was optimized."""

    image: Tensor  # float32 (C, H, W), about [-1, 1], on the CPU
    indices: tuple[Tensor, ...]  # of each grid the nearest or likeliest codes, int64 (h, w)
    losses: tuple[float, ...]  # of every step


OnStep = Callable[[GuideStep], None]


def guide(
    stage: FirstStage,
    objective: Objective,
    settings: GuideSettings | None = None,
    *,
    start: Start | None = None,
    number: int = 0,
    on_step: OnStep | None = None,
) -> Guided:
    """Optimize codes of a first stage for an objective.

    Args:
        stage: in eval mode; it is frozen, and stays where it is.
        start: by default random codes of an image of the training size.
        number: of the image, which with the seed decides it: on a CPU bit for bit.
        on_step: called after every step; what it raises ends the loop.

    Raises:
        UserError: for a first stage of labels, an image for which there is no memory, and if the
            loss is not finite.
    """
    settings = settings or GuideSettings()
    grids = CodeGrids.of(frozen(stage))
    chance = chance_for(settings.seed, number, grids.device)
    start = start or random_start(grids, trained_grid(grids), chance)
    if math.prod(start.shape) > math.prod(trained_grid(grids)):
        check_step_memory(grids, start.shape)
    point = _point(grids, start, settings)
    losses = []
    with torch.enable_grad():
        for loss, image in _steps(point, objective, settings, (start.shape, chance)):
            losses.append(loss)
            if on_step is not None:
                on_step(GuideStep(len(losses), settings.steps, loss, image))
    with torch.no_grad():
        values = point.result()
        image = grids.decode(point.final_codes(values), start.shape)
    shapes = grids.shapes(start.shape)
    indices = [
        i.view(h, w).cpu() for i, (h, w) in zip(point.indices_of(values), shapes, strict=True)
    ]
    return Guided(image[0].float().cpu(), tuple(indices), tuple(losses))


def _point(grids: CodeGrids, start: Start, settings: GuideSettings) -> Point:
    free = None if start.free is None else grids.refined(start.free.to(grids.device))
    indices = [grid.to(grids.device) for grid in start.indices]
    if settings.optimize == LATENT:
        quantized = not settings.unquantized
        return Latents(grids, indices, free, settings.ema, quantized=quantized)
    return Logits(
        grids,
        indices,
        free,
        settings.ema,
        relaxation=settings.relaxation,
        temperature=settings.gumbel_temperature,
    )


def _optimizer(point: Point, settings: GuideSettings) -> torch.optim.Optimizer:
    """AdamW, whose steps are about as long as the learning rate: in units of each codebook."""
    latent = settings.optimize == LATENT
    groups = [
        {"params": [offset], "lr": settings.lr * (float(table.std()) if latent else 1.0)}
        for offset, table in zip(point.offsets, point.grids.tables, strict=True)
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=settings.weight_decay)


def _steps(
    point: Point, objective: Objective, settings: GuideSettings, of: tuple[tuple[int, int], Chance]
) -> Iterator[tuple[float, Tensor]]:
    """The loss, and the image before it, of every step."""
    shape, chance = of
    optimizer = _optimizer(point, settings)
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(settings.steps):
        share = 0.5 + 0.5 * math.cos(math.pi * step / settings.steps)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share if settings.lr_schedule == "cosine" else rate
        image = point.grids.decode(point.codes(chance.device), shape)  # (1, C, H, W)
        loss = objective(within_range((image + 1) / 2), chance)
        whole = loss + settings.init_weight * point.from_start() if settings.init_weight else loss
        optimizer.zero_grad()
        whole.backward()
        value = float(whole.detach())
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {step + 1}; give a smaller --lr")
        point.hold()
        optimizer.step()
        point.settle()
        yield value, image[0].detach()


class _WithinRange(torch.autograd.Function):
    """Clamps to [0, 1]; the gradient passes where its step would lead back into the range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,), (grad,) = ctx.saved_tensors, grads
        # A step goes against the gradient: up from below 0 where it is negative.
        outwards = ((x < 0) & (grad > 0)) | ((x > 1) & (grad < 0))
        return grad.masked_fill(outwards, 0.0)


def within_range(x: Tensor) -> Tensor:
    """`x` clamped to [0, 1], whose gradient is 0 only where it leads further out."""
    clamped: Tensor = _WithinRange.apply(x)
    return clamped

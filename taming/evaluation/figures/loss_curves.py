"""The validation losses of runs side by side: at equal steps, at equal time, and as curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taming.figures import new_figure, save_figure

HOUR = 3600.0


@dataclass(frozen=True)
class LossCurve:
    """What a run has logged of a loss: points by their steps, which rise."""

    name: str
    steps: Sequence[int]
    losses: Sequence[float]
    seconds: Sequence[float] | None = None  # of training until each point; None: unknown

    def at_step(self, limit: int) -> float | None:
        """The last loss at or before a step."""
        return _last(self.steps, self.losses, limit)

    def at_time(self, limit: float | None) -> float | None:
        """The last loss within so many seconds of training; None if times are unknown."""
        if limit is None or self.seconds is None:
            return None
        return _last(self.seconds, self.losses, limit)


def _last(places: Sequence[float], losses: Sequence[float], limit: float) -> float | None:
    before = [loss for place, loss in zip(places, losses, strict=True) if place <= limit]
    return before[-1] if before else None


@dataclass(frozen=True)
class EqualPoints:
    """Where runs of different lengths can be compared."""

    step: int  # the largest that all have reached
    seconds: float | None  # of training that all have had; None if not all times are known

    @classmethod
    def of(cls, curves: Sequence[LossCurve]) -> EqualPoints:
        times = [curve.seconds[-1] for curve in curves if curve.seconds]
        known = len(times) == len(curves)
        return cls(min(curve.steps[-1] for curve in curves), min(times) if known else None)


def compared(curves: Sequence[LossCurve]) -> dict[str, dict[str, float | None]]:
    """By name the last and the smallest loss of each, and those at `EqualPoints`; None: unknown."""
    equal = EqualPoints.of(curves)
    return {
        curve.name: {
            "steps": curve.steps[-1],
            "hours": curve.seconds[-1] / HOUR if curve.seconds else None,
            "last": curve.losses[-1],
            "smallest": min(curve.losses),
            "at_equal_steps": curve.at_step(equal.step),
            "at_equal_time": curve.at_time(equal.seconds),
        }
        for curve in curves
    }


def loss_rows(curves: Sequence[LossCurve]) -> list[dict[str, Any]]:
    """A row per run of what is `compared`; heads say where."""
    equal = EqualPoints.of(curves)
    time = "at equal time" if equal.seconds is None else f"at {equal.seconds / HOUR:.3g} h"
    heads = {"last": "last", "smallest": "smallest"}
    heads |= {"at_equal_steps": f"at step {equal.step:,}", "at_equal_time": time}
    return [
        {
            "run": name,
            "steps": numbers["steps"],
            "hours": _text(numbers["hours"], "{:.3g}"),
            **{head: _text(numbers[key]) for key, head in heads.items()},
        }
        for name, numbers in compared(curves).items()
    ]


def _text(value: float | None, style: str = "{:.4f}") -> str:
    return "-" if value is None else style.format(value)


def plot_losses(curves: Sequence[LossCurve], path: Path, label: str) -> Path:
    """A panel over steps and, if they are known, one over hours of training; a line per run.

    Dotted lines are where the table compares.
    """
    equal = EqualPoints.of(curves)
    panels = 1 if equal.seconds is None else 2
    figure, charts = new_figure(4.8 * panels, 3.8, panels)
    for curve in curves:
        charts[0].plot(curve.steps, curve.losses, marker=".", label=curve.name)
        if equal.seconds is not None and curve.seconds is not None:
            hours = [seconds / HOUR for seconds in curve.seconds]
            charts[1].plot(hours, curve.losses, marker=".")
    limits = [equal.step, (equal.seconds or 0) / HOUR]
    for axes, name, limit in zip(charts, ("step", "hours of training"), limits, strict=False):
        axes.axvline(limit, color="gray", linestyle=":", linewidth=1)
        axes.set(xlabel=name, ylabel=label)
    charts[0].legend()
    return save_figure(figure, path)

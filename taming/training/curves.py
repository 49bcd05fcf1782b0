"""Logged values of runs as curves, a panel for each value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from taming.config import load_config
from taming.errors import UserError
from taming.figures import new_figure, save_figure
from taming.training.logged_rows import read_values

Points = list[tuple[int, float]]
COLUMNS = 4
REACH = 5  # points on each side that a smooth line is the mean of, with the one between them
DISCRIMINATOR = "train/disc_factor"


def plot_curves(runs: Mapping[str, Path], path: Path, level: float | None = None) -> Path:
    """Draw all that `runs` (by the name that is shown) have logged; returns `path`.

    A panel has a value of training (its points, and the mean of those around each, begun anew
    with the discriminator) and that of the same name in validation (dots). The dotted line is the
    step from which the discriminator counts, the dashed one `level`, in panels of the loss.

    Raises:
        UserError: if a run has logged nothing yet, or without matplotlib.
    """
    values = {name: _values_of(folder) for name, folder in runs.items()}
    panels = list(dict.fromkeys(_panel(key) for run in values.values() for key in run))
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, charts = new_figure(3.3 * columns, 2.4 * rows, columns, rows)
    for chart in charts[len(panels) :]:
        chart.remove()
    for panel, chart in zip(panels, charts, strict=False):
        chart.set_title(panel, fontsize="medium")
        for number, run in enumerate(values.values()):
            _draw(chart, panel, run, f"C{number}")
        if level is not None and panel == "loss":
            chart.axhline(level, color="gray", linestyle="--", linewidth=1)
    if len(runs) > 1:
        lines = [chart.plot([], color=f"C{number}")[0] for number in range(len(runs))]
        figure.legend(lines, list(runs), loc="outside lower center", ncols=len(runs))
    return save_figure(figure, path)


def _values_of(folder: Path) -> dict[str, Points]:
    values = read_values(folder / "csv")
    if values:
        return values
    if _logs_nothing(folder):
        raise UserError(
            f"{folder} has no logged values, as it was trained with --logger false: go on with it, "
            "or start again, with --logger true"
        )
    raise UserError(f"{folder} has no logged values (csv/*/metrics.csv) yet: is it a run?")


def _logs_nothing(folder: Path) -> bool:
    """Whether the last start of a run was without loggers."""
    stored = sorted(folder.glob("configs/*-lightning.yaml"))[-1:]
    config = load_config((), stored=stored, used=("lightning",))
    return OmegaConf.select(config, "lightning.trainer.logger") is False


def _panel(key: str) -> str:
    return key.removeprefix("train/").removeprefix("val/")


def _draw(chart: Any, panel: str, run: Mapping[str, Points], color: str) -> None:
    begun = _start_of_discriminator(run)
    trained = run.get(f"train/{panel}") or run.get(panel, [])
    if trained:
        steps, values = zip(*trained, strict=True)
        chart.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
        before = sum(begun is not None and step < begun for step in steps)
        chart.plot(steps, _smooth(values[:before]) + _smooth(values[before:]), color=color)
    if validated := run.get(f"val/{panel}"):
        chart.plot(*zip(*validated, strict=True), color=color, marker=".", linewidth=0)
    if panel.startswith("lr-"):
        chart.set_ylim(bottom=0)  # a constant is no matter of its last digits
    if begun is not None:
        chart.axvline(begun, color=color, linestyle=":", linewidth=1)


def _start_of_discriminator(run: Mapping[str, Points]) -> int | None:
    """The first step that was logged with it; None if there is none, or it is the run's first."""
    factors = run.get(DISCRIMINATOR, [])
    begun = [step for step, factor in factors if factor > 0]
    return begun[0] if begun and begun[0] > factors[0][0] else None


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean of each value and as many before it as after it, at most `REACH`."""
    reaches = [min(REACH, i, len(values) - 1 - i) for i in range(len(values))]
    windows = (values[i - reach : i + reach + 1] for i, reach in enumerate(reaches))
    return [sum(window) / len(window) for window in windows]

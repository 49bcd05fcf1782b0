"""Matplotlib figures: made without a window, written whole or not at all."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from taming.atomic_files import atomic_path
from taming.errors import UserError
from taming.shipped import extra


def require_matplotlib() -> None:
    """Raise UserError without matplotlib: for what takes long before it plots."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        raise UserError(f"plots need matplotlib: {extra('eval')}") from None


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure of `width` x `height` inches and its axes, row by row.

    Raises:
        UserError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def save_figure(figure: Any, path: Path, dpi: int = 120) -> Path:
    """Write a PNG; returns `path`."""
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")
    return path

"""Losses at equal steps and at equal time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from taming.evaluation.figures.loss_curves import LossCurve, compared, loss_rows, plot_losses

FAST = LossCurve("fast", [10, 20, 30, 40], [5.0, 4.0, 3.5, 3.6], [900.0, 1800.0, 2700.0, 3600.0])
SLOW = LossCurve("slow", [10, 20], [4.5, 3.8], [1800.0, 5400.0])


def test_where_runs_are_equal() -> None:
    """Both have reached step 20, and trained for an hour, in which the slow one came to step 10."""
    assert compared([FAST, SLOW]) == {
        "fast": {
            "steps": 40,
            "hours": 1.0,
            "last": 3.6,
            "smallest": 3.5,
            "at_equal_steps": 4.0,
            "at_equal_time": 3.6,
        },
        "slow": {
            "steps": 20,
            "hours": 1.5,
            "last": 3.8,
            "smallest": 3.8,
            "at_equal_steps": 3.8,
            "at_equal_time": 4.5,
        },
    }
    first, second = loss_rows([FAST, SLOW])
    assert list(first) == ["run", "steps", "hours", "last", "smallest", "at step 20", "at 1 h"]
    assert list(second.values()) == ["slow", 20, "1.5", "3.8000", "3.8000", "3.8000", "4.5000"]


def test_unknown_times() -> None:
    untimed = LossCurve("untimed", [5, 15], [6.0, 5.5])
    first, second = loss_rows([FAST, untimed])
    assert (first["at equal time"], second["hours"], second["at step 15"]) == ("-", "-", "5.5000")
    assert first["at step 15"] == "5.0000"
    late = LossCurve("late", [30], [1.0])
    assert compared([SLOW, late])["late"]["at_equal_steps"] is None


def test_a_panel_of_steps_and_one_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.touch())
    )
    plot_losses([FAST, SLOW], tmp_path / "x.png", "val/loss")
    by_step, by_time = drawn[0].axes
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in by_time.lines]
    assert lines[1] == ([0.5, 1.5], [4.5, 3.8]) and lines[2][0] == [1.0, 1.0]
    assert list(by_step.lines[0].get_xdata()) == [10, 20, 30, 40]
    assert list(by_step.lines[2].get_xdata()) == [20, 20]
    assert [text.get_text() for text in by_step.get_legend().get_texts()] == ["fast", "slow"]
    plot_losses([FAST, LossCurve("untimed", [5], [6.0])], tmp_path / "y.png", "val/loss")
    assert len(drawn[1].axes) == 1

"""Stand-ins of every f, and what is measured of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from taming.errors import UserError
from taming.evaluation.figures import sampling_cost
from taming.evaluation.figures.samples import Drawing
from taming.evaluation.figures.sampling_cost import (
    SamplingCost,
    StandIn,
    measure_cost,
    plot_costs,
)
from taming.sampling.settings import SampleSettings
from taming.sampling.sizes import pixels_per_token, trained_shape

TINY = StandIn(window=4, layers=1, heads=2, width=16, channels=32)
DRAWING = Drawing(SampleSettings(top_k=50), batch_size=2)


@pytest.mark.parametrize("factor", [1, 4])
def test_a_stand_in_has_its_f_and_its_window(factor: int) -> None:
    model = TINY.build(factor, torch.device("cpu"))
    assert pixels_per_token(model) == factor and trained_shape(model) == (4, 4)
    assert model.transformer.config.n_layer == 1


@pytest.mark.parametrize("whole", [False, True])
def test_tokens_and_seconds_of_a_sample(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TINY.build(2, torch.device("cpu"))
    if not whole:
        monkeypatch.setattr(sampling_cost, "estimated_seconds", lambda *_: 3.0)
    cost = measure_cost(model, (8, 16), DRAWING, whole)
    assert (cost.f, cost.tokens) == (2, 4 * 8)
    assert cost.measured == ("whole" if whole else "trial")
    assert cost.parameters == sum(p.numel() for p in model.transformer.parameters())
    assert cost.seconds > 0 if whole else cost.seconds == 1.5  # of the two in the batch


def test_what_is_no_stand_in() -> None:
    for factor in (0, 3, 12):
        with pytest.raises(UserError, match="f is a power of two"):
            TINY.config(factor)
    with pytest.raises(UserError, match="--width 16 must be a multiple of --heads 3"):
        StandIn(heads=3, width=16).config(2)


def test_a_chart_of_seconds_and_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.touch())
    )
    costs = [
        SamplingCost(8, 1024, 2.0, 10**6, "trial"),
        SamplingCost(2, 16384, 60.0, 10**6, "trial"),
    ]
    plot_costs(costs, tmp_path / "cost.png")
    seconds, tokens = drawn[0].axes
    assert list(seconds.lines[0].get_xdata()) == [2, 8]
    assert list(seconds.lines[0].get_ydata()) == [60.0, 2.0]
    assert list(tokens.lines[0].get_ydata()) == [16384, 1024]
    assert [text.get_text() for text in seconds.get_xticklabels()] == ["2", "8"]
    assert costs[1].row("x")["ms per token"] == 3.662

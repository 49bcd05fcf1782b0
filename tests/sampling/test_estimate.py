from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from taming.sampling import Request, SampleSettings, estimate
from taming.sampling.estimate import estimated_seconds, in_words
from tests.kit.models import tiny_model, transformer_config

REQUESTS = [Request(n, (1,), 1) for n in range(5)]


def test_times_in_words() -> None:
    assert [in_words(n) for n in (0.2, 42, 99)] == ["1 s", "42 s", "99 s"]
    assert [in_words(n) for n in (100, 600, 5940)] == ["2 min", "10 min", "99 min"]
    assert [in_words(n) for n in (6000, 9000)] == ["1.7 h", "2.5 h"]


@pytest.fixture(autouse=True)
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes from each look at the clock to the next."""
    seconds = count()
    monkeypatch.setattr(estimate, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))


def test_a_token_of_every_batch_takes_what_one_of_eight_took() -> None:
    def estimated(requests: list[Request], **changes: Any) -> float:
        model = tiny_model(transformer_config(**changes))
        return estimated_seconds(model, requests, SampleSettings(), 2, (4, 4))

    known = torch.full((4, 4), -1)
    known[:, 3] = 0
    assert estimated(REQUESTS) == 3 * 16 / 8
    assert estimated(REQUESTS[:4]) == 2 * 16 / 8
    assert estimated([Request(0, (1,), 1, known=known)]) == 12 / 8
    assert estimated([]) == 0
    assert estimated(REQUESTS, pkeep=0.0) == 3  # all tokens of a batch at once


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_token_of_another_size_takes_what_a_whole_window_does(guidance: float) -> None:
    model, seen = tiny_model(transformer_config({"block_size": 20}, cond_drop=0.1)), []
    model.transformer.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    settings = SampleSettings(guidance=guidance)
    assert estimated_seconds(model, REQUESTS, settings, 2, (5, 6)) == 3 * 30
    rows = 2 if guidance == 1 else 4
    assert seen == [(rows, 1), (rows, 20)]

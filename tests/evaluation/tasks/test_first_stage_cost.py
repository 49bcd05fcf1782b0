"""Parameters by part, and speed by a clock that the test holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from taming.evaluation.tasks import first_stage_cost
from taming.evaluation.tasks.first_stage_cost import measure_speed, parameter_counts
from tests.kit.models import DALLE, FIRST_STAGE, first_stage_config, tiny_model


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_by_part() -> None:
    model = tiny_model(first_stage_config())  # whose loss has a discriminator
    counts = parameter_counts(model)
    assert counts["encoder"] == count(model.encoder) + count(model.quant_conv)
    assert counts["quantizer"] == count(model.quantize) == 12 * 4
    assert counts["total"] == count(model) - count(model.loss) and count(model.loss) > 0
    averaged = tiny_model(first_stage_config(use_ema=True))
    assert parameter_counts(averaged) == counts  # no part of its own
    dalle = tiny_model(DALLE)
    assert parameter_counts(dalle)["total"] == count(dalle)


def test_parts_of_ones_own_are_counted_as_others() -> None:
    model = tiny_model(FIRST_STAGE)
    model.refiner = torch.nn.Linear(3, 2)
    assert parameter_counts(model)["other"] == 8
    assert parameter_counts(model)["total"] == count(model)


class Clock:
    """A first stage that takes so many seconds, by the clock of the module."""

    downsampling_factor = 2
    quantize = None  # of one grid of codes

    def __init__(self, encode: list[float], decode: list[float]) -> None:
        self.now, self.seconds = 0.0, {"encode": iter(encode), "decode": iter(decode)}

    def encode_to_indices(self, x: Tensor) -> Tensor:
        self.now += next(self.seconds["encode"])
        return x[:, 0]

    def decode_indices(self, indices: Tensor) -> Tensor:
        self.now += next(self.seconds["decode"])
        return indices


def test_speed_is_the_median_of_warm_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any = Clock([100.0, 1.0, 2.0, 9.0], [100.0, 4.0, 3.0, 1.0])
    monkeypatch.setattr(first_stage_cost.time, "perf_counter", lambda: clock.now)
    speed = measure_speed(clock, torch.zeros(8, 3, 4, 6), rounds=3)
    assert (speed.encode, speed.decode, speed.both) == (8 / 2, 8 / 3, 8 / 5)
    assert (speed.batch_size, speed.height, speed.width, speed.rounds) == (8, 4, 6, 3)

"""Noise in training is a function of the place."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from taming.training.noise import PositionedNoise


def numbers() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Place:
    """What the callback asks a Trainer for."""

    def __init__(self, epoch: int = 0, rank: int = 0, step: int = 0) -> None:
        self.current_epoch, self.global_rank, self.global_step = epoch, rank, step


def drawn(place: Any, batch: int, seed: str = "3") -> tuple[float, float, float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", seed)
        callback = PositionedNoise()
    module: Any = None
    callback.on_train_batch_start(place, module, None, batch)
    return numbers()


def test_noise_differs_between_places_and_is_repeated_at_the_same() -> None:
    first = drawn(Place(), 0)
    others = [
        drawn(Place(), 1),
        drawn(Place(epoch=1), 0),
        drawn(Place(rank=1), 0),
        drawn(Place(), 0, seed="4"),
    ]
    assert len({*first, *(number for other in others for number in other)}) == 15
    assert drawn(Place(), 0) == first


def test_validation_and_test_have_noise_of_their_own() -> None:
    callback = PositionedNoise()
    place: Any = Place()
    module: Any = None
    found = {drawn(place, 0)}
    for step, loader, batch in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        callback.on_validation_batch_start(Place(step=step), module, None, batch, loader)  # type: ignore[arg-type]
        found.add(numbers())
    callback.on_test_batch_start(place, module, None, 0)
    assert len({*found, numbers()}) == 6


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ("train", (0.161064, 0.719773, 0.208001)),
        ("validation", (0.922022, 0.141622, 0.654005)),
        ("test", (0.485408, 0.421016, 0.057013)),
    ],
)
def test_noise_is_that_of_earlier_versions(hook: str, expected: tuple[float, ...]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "3")
        callback = PositionedNoise()
    getattr(callback, f"on_{hook}_batch_start")(Place(1, 2, 5), None, None, 4)
    assert numbers() == pytest.approx(expected, abs=1e-6)

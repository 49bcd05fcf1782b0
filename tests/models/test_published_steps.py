"""Which kind of step a subclass has, and who takes the steps of its optimizers."""

from __future__ import annotations

from typing import Any

import pytest
from torch.optim import Adam

from taming.models.published_steps import gives_one_loss
from taming.models.vqgan import VQModel
from tests.kit.first_stages import made


class One(VQModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any: ...  # type: ignore[override]


class OneWithAnOptimizer(One):
    def configure_optimizers(self) -> Any:
        return Adam(self.parameters())


class TwoWithAnOptimizer(OneWithAnOptimizer):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any: ...  # type: ignore[override]


class AnyWithAnOptimizer(OneWithAnOptimizer):
    def training_step(self, batch: Any, batch_idx: int, *side: int) -> Any: ...


@pytest.mark.parametrize(
    ("cls", "automatic"),
    [
        (VQModel, False),
        (One, False),  # there are two optimizers
        (OneWithAnOptimizer, True),
        (TwoWithAnOptimizer, False),
        (AnyWithAnOptimizer, False),
    ],
)
def test_the_trainer_takes_the_steps_of_one_optimizer_if_it_is_told_to(
    cls: Any, automatic: bool
) -> None:
    model = made(cls)
    assert not model.automatic_optimization
    model.automatic_optimization = True
    assert model.automatic_optimization == automatic


def test_steps_are_told_apart_by_what_they_take() -> None:
    assert gives_one_loss(lambda self, batch, batch_idx: 0)
    assert not gives_one_loss(lambda self, batch, batch_idx, optimizer_idx: 0)
    assert not gives_one_loss(lambda self, batch, batch_idx, *side: 0)

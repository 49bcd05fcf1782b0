"""When the discriminator sets in: at a step or after a share of the run."""

from __future__ import annotations

import pytest
import torch

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.modules.losses.start import NEVER, DiscriminatorStart
from taming.run_length import RunLength
from tests.kit.models import GAN_LOSS

RUN = RunLength(steps=200, steps_per_epoch=8)


def test_a_share_becomes_a_step_of_the_run() -> None:
    start = DiscriminatorStart(0.1)
    assert start.step == NEVER and start.of_discriminator(10**6) == 0
    said = start.begin(RUN, 0)
    assert said == ["the discriminator counts from step 20 (epoch 2) on, after 0.1 of the run"]
    assert [start.of_discriminator(step) for step in (19, 20)] == [0, 1]
    assert DiscriminatorStart(0.001).begin(RUN, 0) and DiscriminatorStart(7).begin(RUN, 0) == [
        "the discriminator counts from step 7 (epoch 0) on"
    ]


def test_a_config_may_give_percent() -> None:
    loss = instantiate_from_config(
        {**GAN_LOSS, "params": GAN_LOSS["params"] | {"disc_start": "10%"}}
    )
    assert "from step 20 (epoch 2) on, after 0.1 of the run" in loss.begin(RUN, 0)[0]


def test_a_step_beyond_the_run_is_said_and_a_share_is_never_beyond() -> None:
    (line,) = DiscriminatorStart(250001).begin(RUN, 0)
    assert "250001" in line and "200 steps" in line and "disc_start: 0.3" in line
    assert "beyond" not in DiscriminatorStart(0.999).begin(RunLength(1000), 0)[0]
    assert DiscriminatorStart(9).begin(RunLength(), 0) == [
        "the discriminator counts from step 9 on"
    ]


def test_a_share_needs_an_end() -> None:
    with pytest.raises(UserError, match="disc_start follows the length of a run.*no end"):
        DiscriminatorStart(0.1).begin(RunLength(), 0)


def test_a_run_that_goes_on_keeps_the_step_and_a_new_one_does_not() -> None:
    start, longer = DiscriminatorStart(0.1), DiscriminatorStart(0.1)
    start.begin(RUN, 0)
    longer.load_state_dict(start.state_dict())
    assert longer.step == 20
    longer.begin(RunLength(20_000), global_step=200)
    assert longer.step == 20 and torch.equal(longer.known, torch.tensor(20))
    longer.begin(RunLength(20_000), global_step=0)
    assert longer.step == 2000

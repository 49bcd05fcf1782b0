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


def gone_on(share: float, run: RunLength, kept: dict[str, torch.Tensor]) -> tuple[int, str]:
    """The step, and what is said, of a run that goes on from step 100."""
    start = DiscriminatorStart(share)
    start.load_state_dict(kept)
    (line,) = start.begin(run, global_step=100)
    assert int(start.known) == start.step
    return start.step, line


def test_a_run_that_goes_on_keeps_the_step_and_a_new_one_does_not() -> None:
    start, longer = DiscriminatorStart(0.1), RunLength(20_000)
    start.begin(RUN, 0)
    kept = start.state_dict()
    said = "the discriminator counts from step 20{} on, {}"
    assert gone_on(0.1, RUN, kept) == (20, said.format(" (epoch 2)", "after 0.1 of the run"))
    was = "which was 0.1 of the run when that was set"
    assert gone_on(0.1, longer, kept) == (20, said.format("", was))
    assert gone_on(0.1, RunLength(), kept) == (20, said.format("", was))
    (line,) = start.begin(longer, global_step=0)
    assert start.step == 2000 and line.endswith("after 0.1 of the run")


def test_another_share_counts_when_a_run_goes_on() -> None:
    start = DiscriminatorStart(0.3)
    start.begin(RUN, 0)
    step, line = gone_on(0.5, RUN, start.state_dict())
    assert step == 100 and line.endswith("from step 100 (epoch 12) on, after 0.5 of the run")


def test_checkpoints_of_former_versions_keep_their_step() -> None:
    step, line = gone_on(0.1, RunLength(20_000), {"known": torch.tensor(20)})
    assert step == 20 and "which was 0.1 of the run" in line


def test_a_shorter_run_may_end_before_the_step_that_it_keeps() -> None:
    start = DiscriminatorStart(0.9)
    start.begin(RUN, 0)
    step, line = gone_on(0.9, RunLength(150), start.state_dict())
    assert step == 180 and line.startswith("disc_start is 180, which was 0.9 of the run when that")
    assert "the run has 150 steps: it trains without" in line and "0.3" not in line


def test_when_the_autoencoder_begins_to_play_is_said() -> None:
    (line,) = DiscriminatorStart(7, warmup_steps=13).begin(RUN, 0)
    assert line == (
        "the discriminator counts from step 7 (epoch 0) on; the autoencoder's loss has it from "
        "step 20 (epoch 2) on"
    )
    (line,) = DiscriminatorStart(7, warmup_steps=193).begin(RUN, 0)
    assert (
        "disc_warmup_steps: 193" in line and "from step 200 on, and the run has 200 steps" in line
    )
    assert DiscriminatorStart(7, warmup_steps=192).beyond(RUN) is None

"""Losses and gradients that are no numbers stop a run before they reach its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.faults.hooks import Fault
from tests.faults.training import Trial, all_finite, is_sentence
from tests.kit.launch import Launcher

NAN_ITEM = {"data__params__train__params__nan_at": 5}


@pytest.mark.parametrize(("case", "term"), [("vqgan", "rec_loss"), ("transformer", "loss")])
def test_a_loss_that_is_no_number(launcher: Launcher, tmp_path: Path, case: str, term: str) -> None:
    """Term, step and files are named."""
    trial = Trial(launcher, tmp_path, case)
    # An image of NaN has codes, so that the transformer does not see it: its weight is spoiled.
    changes = NAN_ITEM if case == "vqgan" else {}
    faults = [] if changes else [Fault("on_train_batch_start", "nan", 14)]
    ended = trial.start(faults=faults, **changes)
    assert ended.code not in (0, 1) and is_sentence(ended, term, "step"), ended.output
    step = trial.batches(1)[-1]
    assert str(step) in ended.last_line or str(step - 1) in ended.last_line
    if changes:
        assert "grains/5.png" in ended.last_line
    assert all_finite(trial.run)


@pytest.mark.parametrize("case", ["vqgan", "transformer"])
def test_a_gradient_that_is_infinite(launcher: Launcher, tmp_path: Path, case: str) -> None:
    trial = Trial(launcher, tmp_path, case)
    ended = trial.start(faults=[Fault("on_after_backward", "inf", 14)])
    assert ended.code not in (0, 1) and is_sentence(ended, "gradient"), ended.output
    assert all_finite(trial.run)
    assert trial.last["global_step"] in (12, 13)


def test_the_algorithm_of_clipping_counts(launcher: Launcher, tmp_path: Path) -> None:
    """Clipped by value, all elements of a large gradient are equal; by norm, they are not."""
    weights = []
    for algorithm in ("value", "norm"):
        trial = Trial(launcher, tmp_path / algorithm)
        flags = ["--gradient_clip_val", "1e-6", "--gradient_clip_algorithm", algorithm]
        ended = trial.start("--max_steps", "3", *flags)
        assert ended.code == 0, ended.output
        weights.append(trial.last["state_dict"]["decoder.conv_out.weight"])
    assert not torch.equal(*weights)

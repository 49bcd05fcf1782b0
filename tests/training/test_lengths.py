"""What is said of a run's length before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from taming.errors import UserError
from taming.run_length import RunLength
from taming.training.cli import main as main_command
from taming.training.data_module import DataModuleFromConfig
from taming.training.lengths import check_end, check_length, planned
from tests.kit.models import GAN_LOSS
from tests.kit.training import small_vqgan, write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"max_steps": 7}, RunLength(7, 5)),
        ({"max_steps": -1}, RunLength(5000, 5)),  # a thousand epochs, as Lightning has it
        ({"max_epochs": 2}, RunLength(10, 5)),
        ({"max_epochs": 2, "max_steps": 7}, RunLength(7, 5)),
        ({"max_epochs": -1}, RunLength(None, 5)),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, RunLength(6, 3)),
        ({"max_epochs": 2, "limit_train_batches": 3}, RunLength(6, 3)),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, RunLength(4, 2)),
        ({"max_time": "00:01:00:00"}, RunLength(None, 5)),  # as Lightning has it, no end is known
        ({"max_time": {"hours": 1}, "max_steps": -1}, RunLength(None, 5)),
        ({"max_time": "00:01:00:00", "max_epochs": 2}, RunLength(10, 5)),
        ({"max_time": "00:01:00:00", "max_steps": 7}, RunLength(7, 5)),
    ],
)
def test_the_length_by_options(options: dict[str, Any], length: RunLength) -> None:
    assert planned(options, 5) == length


def test_without_a_number_of_batches_steps_alone_are_known() -> None:
    assert planned({"max_epochs": 2}, None) == RunLength()
    assert planned({"max_epochs": 2, "max_steps": 3}, None) == RunLength(3)


def config_with(**params: Any) -> DictConfig:
    loss = {**GAN_LOSS, "params": {**GAN_LOSS["params"], **params}}
    return OmegaConf.create({"model": {"params": {"lossconfig": loss}}})


@pytest.mark.parametrize(
    ("params", "options", "line"),
    [
        ({"disc_start": 10}, {}, "disc_start is 10, but the run has 10 steps: it trains without"),
        ({"disc_start": 9}, {}, ""),
        ({"disc_start": 9}, {"devices": [0, 1]}, "but the run has 6 steps"),
        ({"disc_start": 9}, {"devices": "auto"}, ""),  # nobody knows
        ({"disc_start": 10, "disc_factor": 0.0}, {}, ""),
        ({"disc_start": 10}, {"fast_dev_run": 1}, ""),
        ({"disc_start": "90%"}, {}, ""),
        ({"disc_start": "90%", "disc_warmup_steps": 1}, {}, "disc_warmup_steps: 1 the"),
        (
            {"disc_start": 0, "disc_warmup_steps": 10},
            {},
            "from step 10 on, and the run has 10",
        ),
    ],
)
def test_a_game_that_never_begins_is_said(
    params: dict[str, Any], options: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataModuleFromConfig(2, num_workers=0)
    data.datasets = {"train": range(10)}
    check_length(config_with(**params), {"max_epochs": 2, "devices": 1, **options}, data)
    assert bool(caplog.text) is bool(line) and line in caplog.text


def test_what_follows_the_length_of_a_run_needs_one() -> None:
    annealed = {"target": "taming.models.cond_transformer.Net2NetTransformer"}
    annealed |= {"params": {"order": "annealed"}}
    endless: dict[str, Any] = {"max_epochs": -1}
    for model in (annealed, {**annealed, "params": {"order": "annealed", "anneal": [3, 1.0]}}):
        with pytest.raises(UserError, match="anneal follows the length of a run, and this one"):
            check_end(OmegaConf.create({"model": model}), endless)
    for own in ({"target": "own.Model"}, {"params": {"order": "annealed", "anneal": [3, 9]}}):
        check_end(OmegaConf.create({"model": annealed | own}), endless)
    check_end(OmegaConf.create({"model": annealed}), {"max_steps": 9})


@pytest.mark.parametrize("by_callback", [False, True])
def test_a_run_that_time_ends_is_of_no_length(by_callback: bool) -> None:
    timer = {"target": "pytorch_lightning.callbacks.Timer", "params": {"duration": {"hours": 8}}}
    options = {} if by_callback else {"max_time": "00:08:00:00"}
    callbacks = {"lightning": {"callbacks": {"timer": timer, "other": None}}} if by_callback else {}
    cosine = {"target": "taming.lr_scheduler.CosineSchedule", "params": {}}
    for params, key in (
        ({"lossconfig": {"params": {"disc_start": 0.3}}}, "disc_start"),
        ({"scheduler_config": cosine}, "scheduler_config"),
        ({"temperature_scheduler_config": cosine}, "temperature_scheduler_config"),
    ):
        config = OmegaConf.create({"model": {"target": "own.Model", "params": params}, **callbacks})
        with pytest.raises(UserError, match=f"{key}.* follows the length of a run, and this"):
            check_end(config, options)
        check_end(config, {**options, "max_epochs": 3})


@pytest.mark.parametrize(
    ("rule", "params", "line"),
    [
        ("LinearSchedule", {"warm_up_steps": 30}, "params.scheduler_config: warm_up_steps: 30 lea"),
        ("ConstantSchedule", {"warm_up_steps": 40}, "scheduler_config: the schedule comes to its"),
        ("CosineSchedule", {"steps": 50}, "end at step 50, but the run has 10 steps"),
        ("CosineSchedule", {"warm_up_steps": "50%"}, ""),
    ],
)
def test_schedules_that_do_not_fit_the_run(
    rule: str, params: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    section = {"target": f"taming.lr_scheduler.{rule}", "params": params}
    config = OmegaConf.create({"model": {"params": {"scheduler_config": section}}})
    data = DataModuleFromConfig(2, num_workers=0)
    data.datasets = {"train": range(10)}
    by_epochs, by_steps = {"max_epochs": 2, "devices": 1}, {"max_steps": 10, "devices": 1}
    if rule == "LinearSchedule":
        with pytest.raises(UserError, match=line):
            check_end(config, by_steps)
        with pytest.raises(UserError, match=line):
            check_length(config, by_epochs, data)
        return
    for options in (by_epochs, by_steps):
        caplog.clear()
        check_end(config, options)
        check_length(config, options, data)
        assert bool(caplog.text) is bool(line) and line in caplog.text


def test_losses_of_ones_own_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    config, data = config_with(disc_start=10), DataModuleFromConfig(2, num_workers=0)
    config.model.params.lossconfig.target = "own.loss.Loss"
    check_length(config, {"max_steps": 1, "devices": 1}, data)
    check_length(OmegaConf.create({"model": {}}), {"max_steps": 1, "devices": 1}, data)
    assert not caplog.text


def test_it_is_said_before_the_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    base = write_config(tmp_path, small_vqgan())
    built = "taming.training.cli.instantiate_from_config"
    monkeypatch.setattr(built, lambda *_: pytest.fail(caplog.text or "nothing said"))
    with pytest.raises(pytest.fail.Exception, match="disc_start is 1, but the run has 1 steps"):
        main(["--base", base, "-t", "--max_steps", "1"])

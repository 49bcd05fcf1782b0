"""Trainer arguments from flags, devices from --gpus, and what the Trainer is built with."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
import torch

from taming.errors import UserError
from taming.training import trainer_options
from taming.training.arguments import get_parser
from taming.training.trainer_options import (
    check_validation_interval,
    checked_options,
    move_manual_options,
    nondefault_trainer_args,
    parse_option,
    resolve_devices,
)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_steps", "100", 100),
        ("max_steps", "1e3", 1000),
        ("max_epochs", "none", None),
        ("limit_val_batches", "0.5", 0.5),
        ("limit_val_batches", "2", 2),
        ("precision", "bf16-mixed", "bf16-mixed"),
        ("precision", "32", 32),
        ("fast_dev_run", "true", True),
        ("fast_dev_run", "True", True),
        ("max_epochs", "None", None),
        ("devices", "2", 2),
        ("devices", "0,1", [0, 1]),
        ("devices", "0,", [0]),
        ("devices", "0,a", "0,a"),
        ("accelerator", "cpu", "cpu"),
        ("gradient_clip_val", "1", 1),
        ("default_root_dir", "runs/1", "runs/1"),
        ("overfit_batches", "1", 1),
        ("deterministic", "warn", "warn"),
    ],
)
def test_flags_get_the_type_of_the_argument(name: str, text: str, value: Any) -> None:
    parsed = parse_option(name, text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        (None, None),
        ("00:01:00:00", "00:01:00:00"),
        ({"minutes": 90}, timedelta(hours=1.5)),
        ({"days": 1, "seconds": 2.5}, timedelta(days=1, seconds=2.5)),
    ],
)
def test_times_as_lightning_takes_them(value: Any, taken: Any) -> None:
    assert checked_options({"max_time": value}) == {"max_time": taken}


@pytest.mark.parametrize(
    "value",
    [
        *(5, "5", "x", "1:00", True, 1.5, [1], {}, {"minute": 1}, {"days": "x"}),
        *({"days": -1}, {"days": 1e30}, {"days": float("nan")}),
    ],
)
def test_other_times_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match="--max_time is .*; write '00:01:00:00' for days"):
        checked_options({"max_time": value})


def test_a_value_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(UserError, match="--max_steps takes int, not 'many'"):
        parse_option("max_steps", "many")


@pytest.mark.parametrize(
    ("gpus", "devices"),
    [("0,", [0]), ("0,1", [0, 1]), ("2", 2), (2, 2), ("-1", -1), ([0, 3], [0, 3])],
)
def test_gpus_in_all_its_forms(gpus: Any, devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_devices({"gpus": gpus, "max_steps": 1}) == {
        "accelerator": "gpu",
        "devices": devices,
        "max_steps": 1,
    }


def test_without_gpus_the_cpu_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu = {"accelerator": "cpu", "devices": 1}
    assert resolve_devices({}) == cpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level("INFO"):
        assert resolve_devices({"gpus": "0"}) == cpu
    assert "--gpus 0 is no GPU: the CPU trains; the first GPU is --gpus '0,'" in caplog.text
    assert resolve_devices({"accelerator": "auto"}) == {"accelerator": "auto"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--gpus 0, asks for a GPU, but torch finds none"):
        resolve_devices({"gpus": "0,"})
    with pytest.raises(UserError, match="write '0,' for the first GPU"):
        resolve_devices({"gpus": "first"})
    with pytest.raises(UserError, match="--devices first: write '0,' for"):
        resolve_devices({"devices": "first"})


@pytest.mark.parametrize(
    "options", [{"devices": 8}, {"accelerator": "auto", "devices": 8}, {"devices": "0,7"}]
)
def test_devices_that_are_not_there(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing says that they are GPUs but that there is one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="this machine has 1 GPU, number 0"):
        checked_options(resolve_devices(options))
    count = {"devices": 8, "accelerator": "cpu"}
    assert checked_options(resolve_devices(count)) == count
    checked_options(resolve_devices({"devices": "auto"}))


def test_accumulation_and_clipping_move_to_models_that_step_themselves() -> None:
    class Model:
        automatic_optimization = False

    model: Any = Model()
    options = {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5, "max_steps": 3}
    assert move_manual_options(options, model) == {"max_steps": 3}
    assert (model.accumulate_grad_batches, model.gradient_clip_val) == (4, 0.5)
    assert move_manual_options({"gradient_clip_algorithm": "value"}, model) == {}
    assert model.gradient_clip_algorithm == "value"
    with pytest.raises(UserError, match="'norm' or 'value', not 'size'"):
        move_manual_options({"gradient_clip_algorithm": "size"}, model)
    model.automatic_optimization = True
    assert move_manual_options(options, model) == options


def test_options_come_in_the_types_of_their_hints() -> None:
    options = checked_options({"max_steps": 1e3, "gradient_clip_val": 0.5})
    assert options == {"max_steps": 1000, "gradient_clip_val": 0.5}
    assert type(options["max_steps"]) is int
    with pytest.raises(UserError, match=r"lightning.trainer.max_step: .*did you mean 'max_steps'"):
        checked_options({"max_step": 3})
    with pytest.raises(UserError, match="lightning.trainer.max_steps is a mapping"):
        checked_options({"max_steps": {}})


LEAST = {
    **dict.fromkeys(("accumulate_grad_batches", "check_val_every_n_epoch", "num_nodes"), 1),
    **dict.fromkeys(("max_epochs", "max_steps", "num_sanity_val_steps"), -1),
    **dict.fromkeys(("min_epochs", "min_steps", "log_every_n_steps", "gradient_clip_val"), 0),
    **dict.fromkeys((f"limit_{n}_batches" for n in ("train", "val", "test", "predict")), 0),
    **dict.fromkeys(("overfit_batches", "fast_dev_run", "reload_dataloaders_every_n_epochs"), 0),
}


@pytest.mark.parametrize("name", LEAST)
def test_numbers_have_a_least(name: str) -> None:
    least = LEAST[name]
    assert checked_options({name: least}) == {name: least}
    with pytest.raises(UserError, match=f"--{name} is {least - 1}; it must be"):
        checked_options({name: least - 1})


@pytest.mark.parametrize("unit", ["steps", "epochs"])
def test_no_run_is_longer_than_it_may_be(unit: str) -> None:
    for most in (5, -1):
        options = {f"min_{unit}": 5, f"max_{unit}": most}
        assert checked_options(options) == options
    with pytest.raises(UserError, match=f"--min_{unit} is 5, above --max_{unit}, which is 2"):
        checked_options({f"min_{unit}": 5, f"max_{unit}": 2})


def test_what_ends_in_errors_is_refused() -> None:
    assert checked_options({"val_check_interval": 0.1}) == {"val_check_interval": 0.1}
    with pytest.raises(UserError, match="--val_check_interval is 0; it must be above 0"):
        checked_options({"val_check_interval": 0})
    for strategy in ("ddp_spawn", "ddp_fork", "ddp_notebook"):
        with pytest.raises(UserError, match=f"--strategy is {strategy}; .* ddp or auto"):
            checked_options({"strategy": strategy})
    casting = ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16")
    for value in ("fp16", "half", 64, "64", "64-true", *casting, 8):
        with pytest.raises(UserError, match=f"--precision is {value}; it is 32, bf16-mixed or 16-"):
            checked_options({"precision": value})
    for options in ({"strategy": "ddp"}, {"precision": "bf16-mixed"}, {"precision": "32-true"}):
        assert checked_options(options) == options


def test_processes_that_would_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, most in ((1, 8), (4, 16)):
        monkeypatch.setattr(trainer_options, "available_cpus", lambda cpus=cpus: cpus)
        options = {"accelerator": "cpu", "devices": most}
        assert checked_options(options) == options
        with pytest.raises(UserError, match=f"devices is {most + 1}: at most {most}"):
            checked_options({**options, "devices": most + 1})
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        for accelerator in ("gpu", "auto"):
            assert checked_options({"accelerator": accelerator, "devices": 17})
        with pytest.raises(UserError, match="devices is 17: at most 16"):
            checked_options({"accelerator": "cpu", "devices": 17})
    for name in ("MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="num_nodes is 2: start main.py on each"):
        checked_options({"num_nodes": 2})
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert checked_options({"num_nodes": 2}) == {"num_nodes": 2}


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "MASTER_ADDR": "localhost",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
}
SLURM = {
    **{f"SLURM_{name}": "0" for name in ("PROCID", "LOCALID", "NODEID")},
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "train",
    "SLURM_NODELIST": "a",
    "SLURM_NTASKS": "2",
}


@pytest.mark.parametrize(
    ("started", "devices", "nodes", "refused"),
    [
        (TORCHRUN, 1, 2, "torchrun has started 2 processes, and the run is for 1 devices on each"),
        (TORCHRUN, 2, 2, "torchrun has started 2 processes, and the run is for 2 devices on each"),
        (TORCHRUN, 2, 1, None),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}, 1, 2, None),
        (
            {**TORCHRUN, "WORLD_SIZE": "4"},
            1,
            4,
            "torchrun has started 4 processes, 2 of them on this node, and the run is for 1 dev",
        ),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2"}, 1, 2, "SLURM has started 2 processes, and"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, 1, 2, None),
        (SLURM, 1, 2, None),
    ],
)
def test_processes_on_a_node_are_as_many_as_the_run_is_for(
    started: dict[str, str],
    devices: int,
    nodes: int,
    refused: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    options = {"accelerator": "cpu", "devices": devices, "num_nodes": nodes}
    if refused is None:
        assert checked_options(options) == options
    else:
        with pytest.raises(UserError, match=refused):
            checked_options(options)


def test_devices_of_a_cpu_are_a_count() -> None:
    with pytest.raises(UserError, match="--devices 0,1: CPUs have no numbers; say how many"):
        checked_options({"accelerator": "cpu", "devices": [0, 1]})


@pytest.mark.parametrize(
    ("options", "batches", "most"),
    [
        ({}, 10, 10),
        ({"limit_train_batches": 6}, 10, 6),
        ({"limit_train_batches": 20}, 10, 10),
        ({"limit_train_batches": 0.5}, 10, 5),
        ({}, None, 99),
        ({"check_val_every_n_epoch": None}, 10, 99),
    ],
)
def test_a_validation_has_to_be_within_the_epoch(
    options: dict[str, Any], batches: int | None, most: int
) -> None:
    check_validation_interval({**options, "val_check_interval": most}, batches)
    check_validation_interval({**options, "val_check_interval": 1.0}, batches)
    if most < 99:
        with pytest.raises(UserError, match=f"--val_check_interval is {most + 1}, but an epoch"):
            check_validation_interval({**options, "val_check_interval": most + 1}, batches)


def test_arguments_that_differ_from_the_trainer_s_defaults() -> None:
    opt = get_parser(description="mine").parse_known_args(["-t", "--seed", "3"])[0]
    opt.max_steps, opt.max_epochs, opt.precision = 7, None, "32"
    assert nondefault_trainer_args(opt) == ["max_steps", "precision"]
    assert get_parser(description="mine").description == "mine"

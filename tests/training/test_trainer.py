"""Trainer arguments from flags, devices from --gpus, and what the Trainer is built with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from taming.errors import UserError
from taming.training.callbacks import ImageLogger
from taming.training.data_module import DataModuleFromConfig, WrappedDataset
from taming.training.trainer import move_manual_options, parse_option, resolve_devices
from tests.data.written_files import write_images


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
        ("devices", "2", 2),
        ("devices", "0,1", [0, 1]),
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


def test_a_value_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(UserError, match="--max_steps takes int, but 'many' was given"):
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


def test_without_gpus_the_cpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = {"accelerator": "cpu", "devices": 1}
    assert resolve_devices({}) == cpu
    assert resolve_devices({"gpus": "0"}) == cpu
    assert resolve_devices({"accelerator": "auto"}) == {"accelerator": "auto"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--gpus 0, asks for a GPU, but torch finds none"):
        resolve_devices({"gpus": "0,"})
    with pytest.raises(UserError, match="write '0,' for the first GPU"):
        resolve_devices({"gpus": "first"})


def test_accumulation_and_clipping_move_to_models_that_step_themselves() -> None:
    class Model:
        automatic_optimization = False

    model: Any = Model()
    options = {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5, "max_steps": 3}
    assert move_manual_options(options, model) == {"max_steps": 3}
    assert (model.accumulate_grad_batches, model.gradient_clip_val) == (4, 0.5)
    model.automatic_optimization = True
    assert move_manual_options(options, model) == options


def test_images_are_due_at_powers_of_two_and_every_so_often() -> None:
    logger = ImageLogger(batch_frequency=750, max_images=4)
    due = [step for step in range(1, 2300) if logger.check_frequency(step)]
    assert due == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 750, 1500, 2250]
    logger.increase_log_steps = False
    assert [step for step in range(1, 800) if logger.check_frequency(step)] == [750]


def noise(length: int) -> dict[str, Any]:
    return {"target": "tests.training.small.Noise", "params": {"length": length}}


def test_data_module_loads_each_split() -> None:
    data = DataModuleFromConfig(2, train=noise(5), validation=noise(3), wrap=True, num_workers=0)
    data.prepare_data()
    data.setup()
    assert isinstance(data.datasets["train"], WrappedDataset)
    assert [len(batch["image"]) for batch in data.train_dataloader()] == [2, 2, 1]
    labels = [batch["class_label"].tolist() for batch in data.val_dataloader()]
    assert labels == [[0, 1], [2]]
    assert data.test_dataloader() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_keep_their_workers_and_pin_for_gpus(workers: int) -> None:
    data = DataModuleFromConfig(2, noise(5), noise(3), num_workers=workers)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert isinstance(loader, DataLoader)
        assert loader.persistent_workers == bool(workers)
        assert loader.pin_memory == torch.cuda.is_available()


def test_data_module_hands_bytes_over(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(write_images(tmp_path, 2)))
    params = {"size": 16, "training_images_list_file": str(tmp_path / "list.txt")}
    config = {"target": "taming.data.custom.CustomTrain", "params": params}
    data = DataModuleFromConfig(2, config, num_workers=0, fast_decode=True, image_bytes=True)
    data.setup()
    [batch] = data.train_dataloader()
    assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (2, 16, 16, 3)
    with pytest.raises(UserError, match="data.params.image_bytes: Noise reads no image files"):
        DataModuleFromConfig(2, noise(5), image_bytes=True).setup()


def test_default_workers_are_bounded_by_batch_and_cpus() -> None:
    assert DataModuleFromConfig(1).num_workers <= 2
    assert DataModuleFromConfig(1000).num_workers <= (torch.multiprocessing.cpu_count() or 1)


def test_data_that_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size is 8, but Noise has only 5 items"):
        DataModuleFromConfig(8, train=noise(5)).setup()
    with pytest.raises(UserError, match="batch_size is 0"):
        DataModuleFromConfig(0)
    with pytest.raises(UserError, match="data.params.train: there is no such dataset"):
        DataModuleFromConfig(1).train_dataloader()
    typo = OmegaConf.create({"target": "tests.training.small.Noise", "params": {"lenght": 1}})
    with pytest.raises(UserError, match="data.params.train.params: .*did you mean 'length'"):
        DataModuleFromConfig(1, train=typo).setup()

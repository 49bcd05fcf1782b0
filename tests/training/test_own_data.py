"""Datasets of the user's own: what they do otherwise is said in one sentence, before training."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset, IterableDataset

from taming.errors import UserError
from taming.models import batch_checks
from taming.training.cli import main as main_command
from taming.training.data_module import DataModuleFromConfig
from tests.kit.datasets import images
from tests.kit.resuming import run_config
from tests.kit.training import write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
HERE = "tests.training.test_own_data"


def image(index: int = 0) -> np.ndarray:
    """(8, 8, 3) in [-1, 1], one of eight."""
    return images(8, 3, 8, 8)[index % 8].numpy()


def pixels() -> np.ndarray:
    return (image() + 1) * 127.5


def fail(index: int = 0) -> Any:
    raise KeyError("a column")


# Items by name, from their index.
ITEMS: dict[str, Callable[[int], Any]] = {
    "good": lambda i: {"image": image(i)},
    "floats": lambda i: {"image": pixels()},
    "integers": lambda i: {"image": pixels().astype(np.int32)},
    "bytes": lambda i: {"image": pixels().astype(np.uint8)},
    "shares": lambda i: {"image": (image() + 1) / 2},
    "standardized": lambda i: {"image": 2.5 * image()},
    "complex": lambda i: {"image": image().astype(np.complex64)},
    "objects": lambda i: {"image": image().astype(object)},
    "channels_first": lambda i: {"image": torch.from_numpy(image()).permute(2, 0, 1)},
    "rows": lambda i: {"image": image().ravel()},
    "mirrored": lambda i: {"image": image()[:, ::-1]},
    "nothing": lambda i: None,
    "late_nothing": lambda i: {"image": image()} if i < 4 else None,
    "pair": lambda i: (image(), 1),
    "tensor": lambda i: torch.from_numpy(image()),
    "no_caption": lambda i: {"image": image(), "caption": None},
    "more": lambda i: {"image": image(), **({"more": 1} if i else {})},
    "other_types": lambda i: {"image": image(), "x": "a" if i else 1},
    "lists": lambda i: {"image": image(), "x": [1] * (i + 1)},
    "failing": fail,
    "late_failing": lambda i: {"image": image()} if i < 4 else fail(i),
    "ending": lambda i: {"image": next(iter(()))},
    "exiting": lambda i: sys.exit(3),
}


class Own(Dataset[Any]):
    def __init__(self, kind: str = "mirrored", length: Any = 6) -> None:
        self.kind, self.length = kind, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return ITEMS[self.kind](index)


class Unmade(Own):
    def __init__(self, kind: str = "") -> None:
        if kind == "file":
            np.load("missing.npy")
        fail() if kind == "key" else sys.exit(3)


class NoLength(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return {"image": image()}


class Stream(IterableDataset[Any]):
    def __init__(self, kind: str = "mirrored", length: int = 6) -> None:
        self.kind, self.length = kind, length

    def __iter__(self) -> Iterator[Any]:
        return (ITEMS[self.kind](i) for i in range(self.length))


class Module(pl.LightningDataModule):
    def __init__(self, batch_size: int | None = None, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        if batch_size is not None:
            self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        fail() if self.fails else None

    def train_dataloader(self) -> Any:
        return DataLoader(Own("good"), batch_size=2)


class Validates(Module):
    def __init__(self, batch_size: int = 2, loaders: int = 1) -> None:
        super().__init__(batch_size)
        self.loaders = loaders

    def val_dataloader(self) -> Any:
        made = [DataLoader(Own("good"), batch_size=2) for _ in range(self.loaders)]
        return made[0] if self.loaders == 1 else made


class ValidatesToo(DataModuleFromConfig):
    def val_dataloader(self) -> Any:
        return DataLoader(Own("good"), batch_size=2)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config_of(data: dict[str, Any]) -> str:
    config = run_config("vqgan")
    config.data = data
    config.model.params.monitor = config.lightning.callbacks = None
    return write_config(Path(), config)


def start(target: str, *words: str, workers: int = 0, **params: Any) -> None:
    train = {"target": f"{HERE}.{target}", "params": params}
    params = {"batch_size": 2, "num_workers": workers, "train": train}
    base = config_of({"target": "main.DataModuleFromConfig", "params": params})
    steps = ("--max_steps", "3", "--max_epochs", "1", "--no-test")
    main(["--base", base, *steps, *words])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("floats", r"'image' of the data has values from .* to 2\d\d.*expected in \[-1, 1\]"),
        ("integers", r"to 2\d\d; images are expected in \[-1, 1\]"),
        ("complex", "a batch of it is a torch.complex64"),
        ("objects", "'image' of the data are of type ndarray of object"),
        ("channels_first", r"the shape \(3, 8, 8\), .* must be \(height, width, channels\)"),
        ("rows", r"images \(height, width, channels\); its items have the shape \(192,\)"),
        ("nothing", "items of the data must be dicts .* items of type NoneType"),
        ("pair", "items of the data must be dicts with an entry 'image'.*is a list"),
        ("tensor", "items of the data must be dicts with an entry 'image'.*is a Tensor"),
        ("no_caption", "'caption' of the data are of type NoneType"),
        ("more", "some items of the data have no 'more'"),
        ("other_types", "'x' of a batch are of several types, int and str"),
        ("lists", "'x' of the data make no batch"),
        ("failing", rf"item 0 of {HERE}.Own raises KeyError: 'a column' \(.*own_data.py, line \d"),
        ("ending", "item 0 of .* raises StopIteration"),
        ("exiting", "item 0 of .* raises SystemExit: 3"),
    ],
)
def test_items_are_looked_at_before_training(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start("Own", "-t", kind=kind)
    assert not Path("logs").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bytes", r"uint8: 0 to 255 is taken as \[-1, 1\]"),
        ("shares", r"from 0\S* to 0.9\S*; images are expected in \[-1, 1\].*double them"),
        ("standardized", r"from -2\S* to 2\S*; images are expected in \[-1, 1\]"),
        ("mirrored", ""),
    ],
)
def test_ranges_that_may_be_meant_are_named(
    kind: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    batch_checks._say.cache_clear()
    with caplog.at_level(logging.INFO):
        start("Own", kind=kind)
    lines = [r.getMessage() for r in caplog.records if "[-1, 1]" in r.getMessage()]
    assert len(lines) == (message != "") and all(re.search(message, line) for line in lines)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("late_failing", r"item \d of .*Own raises KeyError: 'a column' \(.*own_data.py, line \d"),
        ("late_nothing", "items of type (NoneType|NoneType and dict) "),
    ],
)
def test_later_items(kind: str, message: str, workers: int) -> None:
    with pytest.raises(UserError, match=message):
        start("Own", "-t", kind=kind, workers=workers)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("key", r"Unmade raises KeyError: 'a column' \(.*test_own_data.py, line \d+\)$"),
        (
            "file",
            r"Unmade raises FileNotFoundError: .*missing.npy' \(.*test_own_data.py, line \d+\)$",
        ),
        ("", r"Unmade raises SystemExit: 3 \(.*test_own_data.py, line \d+\)$"),
    ],
)
def test_constructors_that_raise(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=f"data.params.train.params: {HERE}.{message}"):
        start("Unmade", kind=kind)


@pytest.mark.parametrize("length", [-1, 2.0, None, 10**19, 10**13])
def test_lengths_are_numbers(length: Any) -> None:
    with pytest.raises(
        UserError, match=r"data.params.train: .*Own (raises|has 10,000,000,000,000)"
    ):
        start("Own", length=length)


def test_a_length_is_needed() -> None:
    with pytest.raises(UserError, match="NoLength has no __len__, .*IterableDataset"):
        start("NoLength")
    with pytest.raises(UserError, match="NoLength has no __len__"):
        start("NoLength", "data.params.wrap=true")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"kind": "floats"}, r"to 2\d\d.*; images are expected in \[-1, 1\]"),
        ({"kind": "late_failing"}, r"Stream raises KeyError: 'a column' \(.*, line \d+\)"),
        ({"length": 0}, "data.params.train gives no items"),
    ],
)
def test_streams(params: Any, message: str, workers: int) -> None:
    with pytest.raises(UserError, match=message):
        start("Stream", "-t", workers=workers, **params)


def test_modules_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TAMING_TRUST", "own_syntax,own_key")
    Path("own_syntax.py").write_text("class A(:\n")
    Path("own_key.py").write_text("class A: ...\n\n{}['b']\n")
    data = {"target": "main.DataModuleFromConfig", "params": {"batch_size": 1}}
    for name, reason in (("syntax", r"SyntaxError: .*, line 1"), ("key", "KeyError: 'b' .*line 3")):
        config = {"data": data, "model": {"target": f"own_{name}.A"}}
        OmegaConf.save(config, "own.yaml")
        with pytest.raises(UserError, match=rf"import of own_{name} raises {reason}\)"):
            main(["--base", "own.yaml"])


def module(**params: Any) -> str:
    return config_of({"target": f"{HERE}.Module", "params": params})


def test_data_modules() -> None:
    main(["--base", module(batch_size=2), "-t", "--max_steps", "1", "--no-test"])
    with pytest.raises(UserError, match=r"Module has no batch_size.*--scale_lr False"):
        main(["--base", module(), "-t"])
    with pytest.raises(UserError, match=r"data: .*Module raises KeyError: 'a column' \("):
        main(["--base", module(fails=True), "-t"])


def test_the_best_are_kept_by_what_a_data_module_validates(
    caplog: pytest.LogCaptureFixture,
) -> None:
    train = {"target": f"{HERE}.Own", "params": {"kind": "good"}}
    of_config = {"batch_size": 2, "num_workers": 0, "train": train}
    for name, params in (("Validates", {}), ("ValidatesToo", of_config)):
        base = config_of({"target": f"{HERE}.{name}", "params": params})
        caplog.clear()
        words = ("model.params.monitor=val/rec_loss", "--max_epochs", "1", "--no-test", "-n", name)
        main(["--base", base, *words, "-t"])
        said = [record.getMessage() for record in caplog.records]
        assert "keeping the 3 checkpoints with the best val/rec_loss" in said
        assert list(Path("logs").glob(f"*_{name}/checkpoints/epoch*.ckpt"))


def test_without_batches_to_validate_the_newest_epoch_is_kept() -> None:
    own = {"target": f"{HERE}.Own", "params": {"kind": "good"}}
    params = {"batch_size": 2, "num_workers": 0, "train": own, "validation": own}
    base = config_of({"target": "main.DataModuleFromConfig", "params": params})
    words = ("model.params.monitor=val/rec_loss", "--limit_val_batches", "0", "--max_epochs", "1")
    main(["--base", base, *words, "--no-test", "-t"])
    assert list(Path("logs").glob("*/checkpoints/epoch*.ckpt"))


def test_several_loaders_are_refused() -> None:
    base = config_of({"target": f"{HERE}.Validates", "params": {"loaders": 2}})
    with pytest.raises(UserError, match="one loader each: .*ConcatDataset.*dataloader_idx"):
        main(["--base", base, "-t", "--no-test", "--max_epochs", "1"])

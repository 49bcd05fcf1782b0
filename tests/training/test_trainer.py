"""The Trainer that a config makes: its callbacks, and what they are given."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from torch import nn

from taming.errors import UserError
from taming.training import cli, run_configs, run_folder, trainer
from taming.training.callbacks import NamedModel, SetupCallback
from taming.training.checkpoints import Checkpoints
from taming.training.cli import KEPT_FLAGS, _keep_flags, learning_rate
from taming.training.data_module import DataModuleFromConfig
from taming.training.effect import FiniteValidation, TrainsSomething
from taming.training.first_items import FirstBatches
from taming.training.loggers import Board, Table
from taming.training.monitors import LoggedNames
from taming.training.noise import PositionedNoise
from taming.training.numbers import FiniteNumbers
from taming.training.position import ExactResume
from taming.training.processes import LoaderWatch, ProcessWatch
from taming.training.progress import Pace, RunProgress
from taming.training.run_folder import RunFolder
from taming.training.trainer import (
    _callback_configs,
    _callback_key,
    _callbacks,
    _check_monitor,
    _logger_config,
    _loggers,
    make_trainer,
)
from tests.kit.models import build, first_stage_config

CPU = {"accelerator": "cpu", "devices": 1, "logger": False}


def conf(**sections: Any) -> DictConfig:
    config = OmegaConf.create(sections)
    assert isinstance(config, DictConfig)
    return config


CONFIG = conf(model={"target": "taming.models.vqgan.VQModel"})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "now")
    return RunFolder(tmp_path / "logs" / "now_x", ())


def callbacks_of(run: RunFolder, **lightning: Any) -> list[Any]:
    config = conf(**lightning)
    return list(_callbacks(_callback_configs(config, run), config, CONFIG, run))


def test_the_callbacks_of_every_run(run: RunFolder) -> None:
    ours = [SetupCallback, Pace, ProcessWatch, LoaderWatch, ExactResume, NamedModel]
    found = callbacks_of(run, skip_nonfinite=7)
    ours += [
        PositionedNoise,
        FiniteNumbers,
        LoggedNames,
        FirstBatches,
        TrainsSomething,
        FiniteValidation,
    ]
    assert [type(one) for one in found[:12]] == ours
    assert found[4].tables == run.tables and found[7].skip == 7
    (checkpoints,) = [one for one in found if isinstance(one, Checkpoints)]
    assert Path(checkpoints.dirpath or "") == run.checkpoints
    assert found[2]._before_exit == found[3]._before_exit == checkpoints.writer.wait
    setup = found[0]
    assert (setup.logdir, setup.ckptdir) == (run.path, run.checkpoints)
    assert (setup.cfgdir, setup.now) == (run.config_folder, "now")


def test_a_callback_in_the_place_of_ours_keeps_no_epochs_of_it(run: RunFolder) -> None:
    other = {"checkpoints": {"target": "pytorch_lightning.callbacks.ModelCheckpoint"}}
    other["checkpoints"]["params"] = {"save_top_k": 1}  # type: ignore[assignment]
    *_, own, last = callbacks_of(run, callbacks={**other, "image_logger": None})
    assert isinstance(last, Checkpoints) and (last.save_top_k, last.save_last) == (0, True)
    assert not isinstance(own, Checkpoints)


def test_defaults_of_callbacks(run: RunFolder) -> None:
    model: Any = build(first_stage_config(monitor="val/rec_loss"))
    chosen = _callback_configs(conf(), run, model)
    assert chosen["image_logger"]["params"] == {"batch_frequency": 750, "max_images": 4}
    assert chosen["learning_rate_logger"]["params"] == {"logging_interval": "step"}
    assert chosen["checkpoints"]["params"] == {
        "dirpath": str(run.checkpoints),
        "filename": "{epoch:06}",
        "enable_version_counter": False,
        "monitor": "val/rec_loss",
        "save_top_k": 3,
    }
    own = conf(modelcheckpoint={"params": {"save_top_k": 7}})
    kept = _callback_configs(own, run, model)["checkpoints"]["params"]
    assert kept == {**chosen["checkpoints"]["params"], "save_top_k": 7}
    assert "learning_rate_logger" not in _callback_configs(conf(), run, model, logs=False)
    assert "monitor" not in _callback_configs(conf(), run, None)["checkpoints"]["params"]


def test_callbacks_are_named_by_their_place_in_the_config() -> None:
    assert _callback_key("checkpoints", conf()) == "lightning.modelcheckpoint"
    own = conf(callbacks={"checkpoints": {}})
    assert _callback_key("checkpoints", own) == "lightning.callbacks.checkpoints"
    assert _callback_key("bar", conf()) == "lightning.callbacks.bar"


def test_a_logger_without_a_class_is_a_board(run: RunFolder) -> None:
    own = {"save_dir": str(run.path), "name": "", "version": "tensorboard"}
    assert _logger_config(conf(), run)["params"] == own
    board = _logger_config(conf(logger={"params": {"version": "v"}}), run)
    assert board["target"] == "taming.training.loggers.Board"
    assert board["params"] == {"save_dir": str(run.path), "name": "", "version": "v"}
    assert _logger_config(conf(logger={"target": "a.b"}), run) == {"target": "a.b"}
    for version in ("now", "now_2"):  # a table of its own for each start
        found = _loggers(conf(), run)
        assert [type(one) for one in found] == [Board, Table]
        assert Path(found[1].log_dir) == run.tables / version
        (run.tables / version).mkdir(parents=True)


def test_without_validation_the_newest_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(trainer, "rank_zero_info", said.append)
    monitored = {"monitor": "val/x", "save_top_k": 3}
    params = monitored.copy()
    _check_monitor(params, validates=True)
    assert params == monitored
    _check_monitor(params, validates=False)
    assert params == {"monitor": None, "save_top_k": 1}
    params = {"monitor": "train/x", "save_top_k": 3}
    _check_monitor(params, validates=False)
    assert params["monitor"] == "train/x"
    said.clear()
    for count in (0, 1, 3):
        _check_monitor({"monitor": "train/x", "save_top_k": count}, validates=False)
    best = "checkpoints with the best train/x"
    assert said == [f"keeping the 1 {best}", f"keeping the 3 {best}"]


def test_the_trainer_has_one_bar_and_leaves_sampling_to_the_data(run: RunFolder) -> None:
    model: Any = build(first_stage_config())
    made = make_trainer(CPU, conf(), CONFIG, run, model)
    bars = [one for one in made.callbacks if isinstance(one, TQDMProgressBar)]  # type: ignore[attr-defined]
    assert [type(bar) for bar in bars] == [RunProgress]
    without = make_trainer(CPU | {"enable_progress_bar": False}, conf(), CONFIG, run, model)
    assert not any(isinstance(one, TQDMProgressBar) for one in without.callbacks)  # type: ignore[attr-defined]
    assert made.default_root_dir == str(run.path) and made.loggers == []
    assert not made._accelerator_connector.use_distributed_sampler
    own = conf(callbacks={"bar": {"target": "pytorch_lightning.callbacks.TQDMProgressBar"}})
    made = make_trainer(CPU | {"default_root_dir": None}, own, CONFIG, run, model)
    bars = [one for one in made.callbacks if isinstance(one, TQDMProgressBar)]  # type: ignore[attr-defined]
    assert [type(bar) for bar in bars] == [TQDMProgressBar]
    assert made.default_root_dir == str(run.path)


@pytest.mark.parametrize(
    ("flags", "finished", "expected"),
    [
        ({"train": False, "begins": True}, False, ["checked"]),  # no weights but random ones
        ({"train": True, "begins": True}, False, ["fit", None]),
        ({"train": True}, False, ["fit", None]),
        ({"train": True}, True, ["last.ckpt"]),
        ({"train": False}, False, ["last.ckpt", "checked"]),
        ({"train": False, "no_test": True}, False, ["checked"]),
    ],
)
def test_what_is_tested_is_what_was_trained(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], finished: bool, expected: list[Any]
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(cli, "further", lambda *_: "--max_steps 6" * finished)
    monkeypatch.setattr(cli, "fit", lambda *_: done.append("fit"))
    monkeypatch.setattr(cli, "say_what_was_checked", lambda *_: done.append("checked"))
    args = Namespace(**{"no_test": False, "words": [], **flags})
    lightning: Any = SimpleNamespace(max_epochs=None, max_steps=3)
    lightning.num_test_batches, lightning.limit_test_batches = [1], 1.0
    lightning.test = lambda *_, ckpt_path: done.append(ckpt_path)
    data = DataModuleFromConfig(1, num_workers=0)
    data.datasets = {"test": []}
    model: Any = None
    run = RunFolder(Path("x"), (), None if "begins" in flags else Path("last.ckpt"))
    cli._train_and_test(args, lightning, model, data, run)
    assert done == expected
    done.clear()
    monkeypatch.setattr(cli, "requests", SimpleNamespace(stop=15))
    cli._train_and_test(args, lightning, model, data, run)
    monkeypatch.undo()
    assert done == [one for one in expected if one in ("fit", "checked")]


def test_rates_are_scaled_by_all_items_of_a_step() -> None:
    base = conf(base_learning_rate=1e-4)
    assert learning_rate(base, 2, 3, 5, scale=True) == pytest.approx(30e-4)
    assert learning_rate(base, 2, 3, 5, scale=False) == 1e-4
    for rate in (0, 1):
        assert learning_rate(conf(base_learning_rate=rate), 2, 3, 5, scale=False) == rate
    for bad in (-0.1, 1.1, "fast", None):
        with pytest.raises(UserError, match="model.base_learning_rate must be a number from 0 to"):
            learning_rate(conf(base_learning_rate=bad), 1, 1, 1, scale=False)


@pytest.mark.parametrize(("count", "end"), [(0, "with its own config, unchanged"), (1, "k0=1")])
def test_changes_of_a_resumed_run_are_said(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, count: int, end: str
) -> None:
    monkeypatch.setattr(run_configs, "keep_dataset_defaults", lambda *_, **__: None)
    before = {f"k{number}": 0 for number in range(10)}
    monkeypatch.setattr(run_configs, "load_config", lambda *_, **__: conf(model=before))
    for changed, more in ((count, None), (8, None), (9, "and 1 more"), (10, "and 2 more")):
        now = before | {f"k{number}": 1 for number in range(changed)}
        said = run_configs._changes(conf(model=now), run)
        assert said.startswith("with ")
        assert said.endswith(more or (end if changed < 2 else "=1"))
        assert said.count("=1") == min(changed, 8)


def test_a_finished_run_says_how_to_train_it_further(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(cli, "rank_zero_info", said.append)
    monkeypatch.setattr(cli, "further", lambda *_: "--max_steps 6")
    args = Namespace(no_test=True, train=True)
    made: Any = SimpleNamespace(max_epochs=None, max_steps=3)
    data = DataModuleFromConfig(1, num_workers=0)
    cli._train_and_test(args, made, cast(Any, None), data, RunFolder(Path("a b"), (), Path("y")))
    assert said[0].startswith("a b is finished")
    assert said[0].endswith("-r 'a b' -t True --max_steps 6")


@pytest.mark.parametrize(
    ("given", "kept", "expected"),
    [
        ((None, None, None), {}, (23, True, 0)),
        ((None, None, None), {"seed": 5, "scale_lr": False, "skip_nonfinite": 4}, (5, False, 4)),
        ((0, True, 0), {"seed": 5, "scale_lr": False, "skip_nonfinite": 4}, (0, True, 0)),
    ],
)
def test_flags_come_before_those_of_the_run(
    run: RunFolder, given: tuple[Any, ...], kept: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    args = Namespace(**dict(zip(KEPT_FLAGS, given, strict=True)))
    config = conf(**kept)
    _keep_flags(args, config, run)
    assert tuple(vars(args).values()) == tuple(config[name] for name in KEPT_FLAGS) == expected


class WithMore(Callback):
    def on_train_end(self, trainer: Any, pl_module: Any, more: int) -> None:  # type: ignore[override]
        """With an argument that no Lightning gave."""


class Fits(Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        """Of any arguments."""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("WithMore", r"on_train_end must take \(trainer, pl_module\), as Lightning calls it"),
        ("NoCallback", "is no pytorch_lightning.callbacks.Callback"),
    ],
)
def test_callbacks_that_lightning_cannot_call(run: RunFolder, name: str, sentence: str) -> None:
    def callbacks(name: str) -> list[Any]:
        return callbacks_of(run, callbacks={"mine": {"target": f"{__name__}.{name}"}})

    assert any(isinstance(one, Fits) for one in callbacks("Fits"))
    with pytest.raises(UserError, match=f"lightning.callbacks.mine: {__name__}.{name}.*{sentence}"):
        callbacks(name)


class NoCallback(nn.Module):
    pass

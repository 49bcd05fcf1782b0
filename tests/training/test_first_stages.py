"""First stages under main.py: in two processes, and from checkpoints of the original's time."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from taming.checkpoint import read_checkpoint, save_atomic
from taming.training import run_folder
from taming.training.cli import main as main_command
from tests.kit.launch import Launcher
from tests.kit.processes import TWO_DEVICES, two_train
from tests.kit.training import small_vqgan, write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions


TIME = "2021-04-03T19-39-50"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, TIME)
    return tmp_path


def state(folder: Path, name: str) -> dict[str, Any]:
    return read_checkpoint(folder / f"logs/{TIME}_{name}/checkpoints/last.ckpt")


def test_moving_averages_are_those_of_all_processes(launcher: Launcher, tmp_path: Path) -> None:
    config = small_vqgan(length=16)
    config.model.target = "taming.models.vqgan.EMAVQ"
    base = write_config(tmp_path, config)
    flags = ["--base", base, "-t", "True", "--max_steps", "1"]
    time = {run_folder._TIME_VARIABLE: TIME}
    ended = two_train(launcher, tmp_path, [*flags, "-n", "two", *TWO_DEVICES], **time)
    assert ended.code == 0, ended.output
    main([*flags, "-n", "one", "data.params.batch_size=8"])
    two, one = (state(tmp_path, name)["state_dict"] for name in ("two", "one"))
    for name in ("cluster_size", "embed_avg", "weight"):
        key = f"quantize.embedding.{name}"
        torch.testing.assert_close(two[key], one[key], msg=name)
    grown = one["quantize.embedding.cluster_size"].sum() - 16 * 0.99
    torch.testing.assert_close(grown, torch.tensor(8 * 64 * 0.01), atol=1e-3, rtol=0)


def test_a_run_of_lightning_1_0_goes_on(tmp_path: Path) -> None:
    base = write_config(tmp_path, small_vqgan())
    main(["--base", base, "-t", "True", "-n", "old", "--max_steps", "1"])
    checkpoint = state(tmp_path, "old")
    known = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")
    old = {name: checkpoint[name] for name in known}
    old["state_dict"] = OrderedDict(old["state_dict"])
    old |= {
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {ModelCheckpoint: {"best_model_score": None, "best_model_path": ""}},
    }
    run = tmp_path / "logs" / "2021-04-03T19-39-50_old"
    save_atomic(old, run / "checkpoints" / "last.ckpt")
    main(["-r", str(run), "-t", "True", "--max_steps", "3"])
    assert state(tmp_path, "old")["global_step"] == 3

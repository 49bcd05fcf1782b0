"""Small runs with all kinds of randomness, stopped at chosen moments.

A kill leaves what is on the disk. So a callback copies the run's folder at moments of a run that
goes on; a copy that is resumed must end as the run did.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Dataset

from taming.training import run_folder
from taming.training.checkpoints import Checkpoints
from taming.training.cli import main as main_command
from tests.kit.models import (
    GAN_LOSS,
    VQGAN,
    ddconfig,
    first_stage_config,
    transformer_config,
)
from tests.kit.training import write_config

EPOCHS, BATCHES, BATCH_SIZE = 3, 6, 2
Moment = tuple[str, int, str]  # hook, batch counted from 1 over all epochs, action

# ---------------------------------------------------------------------- runs

SCHEDULE = {
    "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
    "params": {
        "warm_up_steps": 5,
        "lr_min": 0.1,
        "lr_max": 1.0,
        "lr_start": 0.1,
        "max_decay_steps": 16,
    },
}


class Crops(Dataset[dict[str, Any]]):
    """Images with noise from the global generators, as random crops use them."""

    def __init__(self, length: int, size: int = 8, nan_at: int | None = None) -> None:
        self.length, self.size, self.nan_at = length, size, nan_at

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        base = np.random.RandomState(index).rand(self.size, self.size, 3)
        image = base + 0.2 * np.random.rand(self.size, self.size, 3)
        image = (1.6 * image - 1).clip(-1, 1).astype(np.float32)
        if index == self.nan_at:
            image[:] = np.nan
        return {"image": image, "class_label": index % 5, "file_path_": f"crops/{index}.png"}


def _first_stage(target: str, module: str = VQGAN, **params: Any) -> dict[str, Any]:
    convolutions = {**ddconfig(resolution=8), "dropout": 0.1}
    return first_stage_config(module + target, ddconfig=convolutions, **params)


def _transformer(gpt: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    dropout: dict[str, Any] = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.1)
    common = {"cond_drop": 0.2, "scheduler_config": SCHEDULE, "cond_stage_key": "class_label"}
    return transformer_config({**dropout, **(gpt or {})}, **common, **params)


OPEN = {  # follows the length of the run
    "target": "taming.lr_scheduler.CosineSchedule",
    "params": {"warm_up_steps": 0.2, "start": 0.9, "end": 0.1},
}
PENALTIES = {"lecam_weight": 0.1, "r1_weight": 0.1, "r1_every": 2, "gradient_penalty_weight": 0.1}
STEADIED = {**GAN_LOSS, "params": {**GAN_LOSS["params"], "disc_start": 0.3, **PENALTIES}}

TOP = {"z_channels": 8, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": []}

MODELS: dict[str, dict[str, Any]] = {
    "vqgan": _first_stage("VQModel", scheduler_config=SCHEDULE, monitor="val/rec_loss"),
    "ema": _first_stage("EMAVQ", revive_after=3, use_ema=True),
    "gumbel": _first_stage(
        "GumbelVQ",
        temperature_scheduler_config=OPEN,
        scheduler_config=OPEN,
        revive_after=2,
        lossconfig=STEADIED,
    ),
    "two_level": _first_stage(
        "TwoLevelVQ",
        "taming.models.two_level.",
        top_ddconfig={**TOP, "dropout": 0.1},
        use_ema=True,
        revive_after=3,
    ),
    "transformer": _transformer(pkeep=0.9),
    "annealed": _transformer(
        {"target_positions": True}, pkeep=0.9, order="annealed", anneal=[0.1, "90%"]
    ),
    "masked": _transformer({"attention": "full", "block_size": 17, "vocab_size": 24}),
}
OPTIONS: dict[str, dict[str, Any]] = {  # overrides
    "ema": {"lightning.trainer.accumulate_grad_batches": 4},
    "gumbel": {"lightning.trainer.val_check_interval": 3},
    "transformer": {
        "lightning.trainer.accumulate_grad_batches": 4,
        "data.params.num_workers": 2,
    },
}


def run_config(case: str) -> DictConfig:
    """The config of a case; `Moments` come from the environment, not from the config."""
    data = {
        name: {"target": "tests.kit.resuming.Crops", "params": {"length": length}}
        for name, length in (("train", BATCHES * BATCH_SIZE), ("validation", 4))
    }
    config = {
        "model": {"base_learning_rate": 5.0e-4, **copy.deepcopy(MODELS[case])},
        "data": {
            "target": "main.DataModuleFromConfig",
            "params": {"batch_size": BATCH_SIZE, "num_workers": 0, **data},
        },
        "lightning": {
            "trainer": {
                "max_epochs": EPOCHS,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "log_every_n_steps": 1,
            },
            "callbacks": {
                "image_logger": {"params": {"batch_frequency": 10, "max_images": 2}},
                "moments": {"target": "tests.kit.resuming.Moments"},
            },
        },
    }
    created = OmegaConf.create(config)
    for key, value in OPTIONS.get(case, {}).items():
        OmegaConf.update(created, key, value, force_add=True)
    return created


# ---------------------------------------------------------------------- moments

VARIABLE = "TEST_MOMENTS"


def moments(*chosen: Moment) -> dict[str, str]:
    """The environment in which a run does something at its moments.

    Actions are the names of signals, `raise`, `nan` (a weight), `inf` (a gradient), and the name of
    a folder beside the run to copy the run to.
    """
    return {VARIABLE: json.dumps(chosen)}


class Moments(pl.Callback):
    """Does what the environment asks for, and keeps the names of the items of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = [tuple(entry) for entry in json.loads(os.environ.get(VARIABLE, "[]"))]
        self.batch = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        batches: Any = trainer.num_training_batches  # infinity, of a stream
        batches = BATCHES if batches == float("inf") else int(batches)
        self.batch = trainer.current_epoch * batches + batch_idx + 1
        with Path(trainer.default_root_dir, f"seen_{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{trainer.current_epoch} {' '.join(batch['file_path_'])}\n")
        self._reached("on_train_batch_start", trainer)

    def _reached(self, hook: str, trainer: pl.Trainer) -> None:
        for moment in [m for m in self.waiting if m[:2] == (hook, self.batch)]:
            self.waiting.remove(moment)
            self._act(moment[2], trainer)

    def _act(self, action: str, trainer: pl.Trainer) -> None:
        if action == "raise":
            raise RuntimeError("as the test wanted")
        if action == "end":  # as --max_time and EarlyStopping do
            trainer.should_stop = True
            return
        if action.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[action])
            return
        if action in ("nan", "inf"):
            trained = [p for p in trainer.lightning_module.parameters() if p.requires_grad]
            values = trained if action == "nan" else [p.grad for p in trained if p.grad is not None]
            values[0].data.view(-1)[0] = float(action)
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints):
                callback.writer.wait()
        run = Path(trainer.default_root_dir)
        shutil.copytree(run, run.parent / action)


def _hook(name: str) -> Any:
    def hook(self: Moments, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if not trainer.sanity_checking:
            self._reached(name, trainer)

    return hook


for _name in (
    "on_train_start",
    "on_train_epoch_start",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_validation_batch_start",
    "on_validation_end",
):
    setattr(Moments, _name, _hook(_name))


def seen(run: Path) -> dict[int, list[str]]:
    """The items that a run has trained on: epoch -> names, over all starts and processes."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in run.glob("seen_*.txt"):
        for line in path.read_text().splitlines():
            epoch, *names = line.split()
            found[int(epoch)] += names
    return found


# ---------------------------------------------------------------------- uninterrupted runs

TIME = "2021-04-03T19-39-50"
RUN = f"logs/{TIME}_run"

USR1 = [("on_train_batch_start", 3, "SIGUSR1"), ("on_before_optimizer_step", 8, "SIGUSR1")]

# What a kill leaves at these moments; before each of them, something has been saved. An epoch has
# six batches; gradients of four are added up where a case does that: 4, 6, 10, 12, ...
MOMENTS: list[Moment] = [
    ("on_train_batch_start", 5, "after_a_signal"),  # saved after batch 3, or 4
    ("on_validation_batch_start", 6, "in_validation"),
    ("on_train_epoch_end", 6, "before_the_save_of_an_epoch"),
    ("on_train_epoch_start", 6, "after_the_save_of_an_epoch"),
    ("on_train_batch_end", 7, "in_the_second_epoch"),
    ("on_train_batch_start", 11, "after_another_signal"),  # saved after batch 8, or 10
    ("on_train_epoch_start", 12, "after_the_second_epoch"),
]


def write_uninterrupted(case: str, folder: Path) -> Path:
    """logs/ in `folder`, with the uninterrupted run of a case, `whole`, and copies at `MOMENTS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in moments(*USR1, *MOMENTS).items():
            patch.setenv(name, value)
        patch.setenv(run_folder._TIME_VARIABLE, TIME)
        base = write_config(folder, run_config(case))
        main_command.__wrapped__(["--base", base, "-t", "-n", "run", "--no-test"])  # type: ignore[attr-defined]
    (folder / RUN).rename(folder / "logs" / "whole")
    return folder / "logs"

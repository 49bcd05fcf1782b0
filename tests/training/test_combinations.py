"""Options together, in two processes: they train what one process does on the batches of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from scripts.consolidate import main as consolidate
from scripts.encode_dataset import main as encode
from taming.checkpoint import read_checkpoint
from taming.errors import UserError
from taming.training import run_folder
from taming.training.cli import main as main_command
from tests.kit.launch import Launcher
from tests.kit.models import (
    GAN_LOSS,
    NO_LOSS,
    ddconfig,
    first_stage_config,
    tiny_model,
    transformer_config,
)
from tests.kit.processes import TWO_DEVICES, two_train
from tests.kit.training import NOISE, write_config
from tests.support import write_run

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions

TIME = {run_folder._TIME_VARIABLE: "t"}
COMPILING = 600.0  # seconds, of two processes on a machine that is busy with other things
ALONE = ("--accelerator", "cpu", "--devices", "1", "--strategy", "auto", "data.params.batch_size=4")
HOW = ("-t", "--no-test", "--max_steps", "4")
HOW += ("--accumulate_grad_batches", "2", "--gradient_clip_val", "0.1")

PARAMS, GPT = "model.params.", "model.params.transformer_config.params."
LOSS = "model.params.lossconfig.params."
COMPILE, CHECKPOINT = f"{PARAMS}compile=true", f"{PARAMS}checkpoint_activations=true"
REUSE, TEACHER = f"{PARAMS}reuse_reconstruction=true", f"{PARAMS}teacher=teacher"
CODES = "data.params.codes=codes"
VARIANTS = (f"{GPT}rope_grid=[4,4]", f"{GPT}qk_norm=true", f"{GPT}norm=rms", f"{GPT}mlp=swiglu")
PENALTIES = (f"{LOSS}r1_weight=1.0", f"{LOSS}r1_every=2", f"{LOSS}lecam_weight=0.1")
RULE = "{target: taming.lr_scheduler.CosineSchedule, params: {warm_up_steps: 50%}}"
SCHEDULE = f"{PARAMS}scheduler_config={RULE}"

OF_TRANSFORMERS = {
    "compiled": (COMPILE,),
    "taught": (TEACHER,),
    "on codes": (CODES,),
    "taught on codes, compiled": (TEACHER, CODES, COMPILE),
    "checkpoints activations, compiled": (CHECKPOINT, COMPILE),
    "variants, compiled, scheduled": (*VARIANTS, COMPILE, SCHEDULE),
}
OF_FIRST_STAGES = {
    "reuse, R1, LeCAM": (REUSE, *PENALTIES),
    "reuse, R1, LeCAM, compiled": (REUSE, *PENALTIES, COMPILE, CHECKPOINT),
    "averages, reuse, scheduled": (f"{PARAMS}use_ema=true", REUSE, SCHEDULE),
    "l2, late discriminator, channels last": (
        *(f"{LOSS}pixel_loss=l2", f"{LOSS}disc_start=50%", f"{PARAMS}channels_last=true"),
        f"{LOSS}skip_idle_discriminator=true",
    ),
}


def write(folder: Path, name: str, model: Mapping[str, Any], size: int) -> None:
    train = {"target": NOISE, "params": {"length": 32, "size": size}}
    data = {"batch_size": 2, "num_workers": 0, "train": train}
    config = {
        "model": {"base_learning_rate": 1e-5, **model},
        "data": {"target": "main.DataModuleFromConfig", "params": data},
        "lightning": {
            "trainer": {"enable_progress_bar": False},
            "callbacks": {"image_logger": None},
        },
    }
    write_config(folder, OmegaConf.create(config), name)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configs of both stages, a first stage, its codes, and a teacher."""
    folder = tmp_path_factory.mktemp("combinations")
    stage = first_stage_config(
        ddconfig=ddconfig(resolution=8, z_channels=4), lossconfig=NO_LOSS, n_embed=20
    )
    first = tiny_model(stage).state_dict()
    stages = {
        "first_stage_config": str(write_run(folder / "first", stage, first)),
        "cond_stage_config": "__is_unconditional__",
    }
    write(folder, "transformer.yaml", transformer_config(**stages), 8)
    teacher = transformer_config({"n_layer": 3}, **stages)
    own = {f"first_stage_model.{name}": tensor for name, tensor in first.items()}
    write_run(folder / "teacher", teacher, tiny_model(teacher).state_dict() | own)
    loss = {**GAN_LOSS, "params": {**GAN_LOSS["params"], "disc_start": 0}}
    write(folder, "first.yaml", first_stage_config(lossconfig=loss), 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        encode(["--base", "transformer.yaml", "--out", "codes"])
    return folder


def weights(launcher: Launcher, folder: Path, arguments: list[str], *, shards: bool) -> Any:
    """What two processes train."""
    ended = two_train(launcher, folder, arguments, limit=COMPILING, **TIME)
    assert ended.code == 0, ended.output
    run = folder / "logs" / f"t_{arguments[-1]}"
    if shards:
        consolidate([str(run)])
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def check(launcher: Launcher, home: Path, base: str, strategy: str, options: list[str]) -> None:
    """That two processes and one train the same weights."""
    name = f"run{len(list(home.glob('logs/*')))}"
    common = [*HOW, "--base", base, *options]
    there = [*TWO_DEVICES, "--strategy", strategy, "-n", name]
    both = weights(launcher, home, [*common, *there], shards=strategy == "fsdp2")
    words = [*common, *ALONE, "-n", f"{name}_alone"]
    alone = launcher.run(words, home, environment=TIME, limit=COMPILING)
    assert alone.code == 0, alone.output
    expected = read_checkpoint(home / f"logs/t_{name}_alone/checkpoints/last.ckpt")["state_dict"]
    assert both.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(both[key], tensor, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_transformers(launcher: Launcher, home: Path, strategy: str, name: str) -> None:
    check(launcher, home, "transformer.yaml", strategy, list(OF_TRANSFORMERS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_FIRST_STAGES)
def test_first_stages(launcher: Launcher, home: Path, name: str) -> None:
    options = ["--sync_batchnorm", "true", *OF_FIRST_STAGES[name]]
    check(launcher, home, "first.yaml", "ddp", options)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "16-mixed"])
@pytest.mark.parametrize("base", ["transformer.yaml", "first.yaml"])
def test_other_precisions_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, precision: str, base: str
) -> None:
    monkeypatch.chdir(home)
    for options in ([COMPILE], [REUSE if base == "first.yaml" else TEACHER]):
        with pytest.raises(UserError, match=f"--precision is {precision}"):
            main([*HOW, "--base", base, *TWO_DEVICES, "--precision", precision, *options])

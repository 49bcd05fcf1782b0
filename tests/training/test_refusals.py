"""Values of flags and configs that make no sense are refused before a step is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from taming.errors import UserError
from taming.training.cli import main as main_command
from tests.kit.resuming import run_config
from tests.kit.training import write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--accumulate_grad_batches=0", "is 0; it must be from 1 on"),
        ("--check_val_every_n_epoch=0", "is 0; it must be from 1 on"),
        ("--val_check_interval=0", "is 0; it must be above 0"),
        ("--val_check_interval=1000", "an epoch has 6 batches; to count them over"),
        ("--gradient_clip_val=-1", "is -1; it must be from 0 on"),
        ("--precision=64-true", "it is 32, bf16-mixed or 16-mixed"),
        ("--accelerator=tpu", "the Trainer refuses its arguments"),
        ("--skip_nonfinite=-1", "0 or more batches"),
        ("--seed=99999999999999", "seed is 99999999999999"),
        ("lightning.trainer.num_nodes=64", "num_nodes is 64: start main.py on each"),
        ("lightning.trainer.devices=0", "devices is 0: it must be from 1 on"),
        ("lightning.trainer.devices=640", "devices is 640: at most"),
        ("model.base_learning_rate=.nan", "must be a number from 0 to 1"),
        ("lightning.modelcheckpoint.params.mode=x", "lightning.modelcheckpoint: .mode."),
        ("lightning.modelcheckpoint.params.monitor=x", "monitor is x, which nothing logs"),
        ("lightning.modelcheckpoint.params.last_every_n_minutes=-5", "is -5; it must be from 0 on"),
        ("lightning.modelcheckpoint.params.filename='{epoch:0999}'", "one or two digits"),
        ("lightning.modelcheckpoint.params.save_weights_only=true", "only: a run goes on from its"),
        ("lightning.modelcheckpoint.params.save_on_exception=true", "exception: last.ckpt is wri"),
        ("data.params.num_workers=1000", "num_workers is 1000; it must be from 0 to"),
    ],
)
def test_numbers_without_sense_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    base = write_config(tmp_path, run_config("vqgan"))
    arguments = argument.split("=", 1) if argument.startswith("--") else [argument]
    with pytest.raises(UserError, match=message):
        main(["--base", base, *arguments, "--max_epochs", "1", "-t", "--no-test"])


def test_without_the_weights_of_lpips_no_run_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAMING_VGG16", str(tmp_path / "missing.pth"))
    base = write_config(tmp_path, run_config("vqgan"))
    key = "model.params.lossconfig.params.perceptual_weight"
    with pytest.raises(UserError, match=f"missing.pth.*{key}=0"):
        main(["--base", base, f"{key}=1.0", "-t"])
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "model.params.scheduler_config={target: torch.optim.lr_scheduler.StepLR, "
            "params: {step_size: 3}}",
            "a schedule here is a function of the step, such as taming",
        ),
        (
            "model.params.scheduler_config={target: taming.lr_scheduler.CosineSchedule, "
            "params: {steps: 0}}",
            "scheduler_config.params: steps: 0 leaves nothing",
        ),
        ("model.params.lossconfig.params.disc_start=0.1", "lossconfig.params.disc_start follows"),
        ("model.params.lossconfig.params.disc_start=10%", "lossconfig.params.disc_start follows"),
        (
            "model.params.scheduler_config={target: taming.lr_scheduler.CosineSchedule}",
            "model.params.scheduler_config: a schedule without `steps` follows",
        ),
        ("--skip_nonfinite=-1", "0 or more batches"),
        ("model.base_learning_rate=100", "is 100 .it is multiplied by batch size"),
        ("--precision=16-mixed", "in which a CPU does not train; use bf16-mixed"),
    ],
)
def test_contradictions_are_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("taming.training.cli.build_data", lambda _: pytest.fail("built"))
    base = write_config(tmp_path, run_config("ema"))
    arguments = argument.split("=", 1) if argument.startswith("--") else [argument]
    with pytest.raises(UserError, match=message):
        main(["--base", base, *arguments, "--max_epochs", "-1", "--max_steps", "-1", "-t"])
    assert not (tmp_path / "logs").exists()

"""`quantizer_config` and `scheduler_config`, from YAML to samples and through a resume."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scripts.reconstruct import main as reconstruct
from scripts.sample_fast import main as sample_fast
from taming.checkpoint import load_run, read_checkpoint
from taming.lr_scheduler import LambdaWarmUpCosineScheduler
from taming.training import run_folder
from taming.training.cli import main as main_command
from tests.kit.datasets import images
from tests.kit.images import write_images
from tests.kit.training import small_vqgan, write_config, write_transformer
from tests.support import write_run
from tests.training.sign_quantizer import SignQuantizer

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
QUANTIZER = {"target": "tests.training.sign_quantizer.SignQuantizer", "params": {"bits": 4}}
COURSE = {"warm_up_steps": 2, "lr_min": 0.1, "lr_max": 1.0, "lr_start": 0.25, "max_decay_steps": 5}
SCHEDULER = {"target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler", "params": COURSE}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(monkeypatch: pytest.MonkeyPatch, second: int, *arguments: str) -> None:
    """Run main.py as if at that second."""
    monkeypatch.setenv(run_folder._TIME_VARIABLE, f"2021-01-01T00-00-0{second}")
    main([*arguments, "-t", "True"])


def test_a_quantizer_from_elsewhere_is_trained_resumed_and_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_vqgan()
    config.model.params.ddconfig.resolution = 16
    config.model.params.quantizer_config = QUANTIZER
    base = write_config(tmp_path, config)
    train(monkeypatch, 0, "--base", base, "-n", "first", "--max_steps", "1")
    run = Path("logs/2021-01-01T00-00-00_first")
    train(monkeypatch, 1, "-r", str(run), "--max_steps", "3")
    model, _, step = load_run(run)
    assert step == 3 and isinstance(model.quantize, SignQuantizer)
    x = images(2).permute(0, 3, 1, 2)
    indices = model.encode_to_indices(x)
    assert indices.shape == (2, 8, 8) and 1 < indices.unique().numel() <= 16
    torch.testing.assert_close(model.decode_indices(indices), model(x)[0])

    write_images(tmp_path / "inputs", 1, 16, 16)
    reconstruct(["-r", str(run), "-o", "out", "inputs", "--size", "16", "--device", "cpu"])
    with Image.open(next(Path("out").glob("3/*.png"))) as image:
        assert image.size == (16, 16)
    stage = f"model.params.first_stage_config={run}"
    base = write_transformer(tmp_path)
    train(monkeypatch, 2, "--base", base, "-n", "second", "--max_steps", "1", stage)
    second = "logs/2021-01-01T00-00-02_second"
    sample_fast(["-r", second, "-n", "1", "--classes", "3", "--device", "cpu"])
    assert list(Path(second).glob("samples/*/1/3/000000.png"))


def rates(run: Path) -> dict[int, list[float]]:
    """Step -> the learning rates that were logged then, of all starts of a run."""
    logged: dict[int, list[float]] = {}
    for table in sorted(run.glob("csv/*/metrics.csv")):
        for row in csv.DictReader(table.open()):
            values = [float(v) for k, v in sorted(row.items()) if k.startswith("lr-") and v]
            if values:
                logged[int(row["step"])] = values
    return logged


def configs(folder: Path, stage: str) -> tuple[Any, int, float]:
    """A YAML with the schedule, its number of parameter groups, and the full learning rate."""
    if stage == "first":
        config = small_vqgan()
        config.model.params.scheduler_config = SCHEDULER
        return write_config(folder, config), 2, 4 * 5.0e-5
    first = write_run(folder / "logs" / "stage", small_vqgan().model)
    changes = {"first_stage_config": str(first), "scheduler_config": SCHEDULER}
    return write_transformer(folder, **changes), 2, 4 * 1.5e-5


@pytest.mark.parametrize("stage", ["first", pytest.param("second", marks=pytest.mark.slow)])
def test_the_learning_rate_follows_its_course_through_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    base, groups, full = configs(tmp_path, stage)
    train(monkeypatch, 0, "--base", base, "-n", "whole", "--max_steps", "6")
    train(monkeypatch, 0, "--base", base, "-n", "parts", "--max_steps", "2")
    whole, parts = (Path("logs", f"2021-01-01T00-00-00_{name}") for name in ("whole", "parts"))
    train(monkeypatch, 1, "-r", str(parts), "--max_steps", "6")
    course = LambdaWarmUpCosineScheduler(**COURSE)
    expected = {step: [pytest.approx(full * course(step))] * groups for step in range(6)}
    assert rates(whole) == expected
    assert rates(parts) == rates(whole)
    first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, parts))
    for name, tensor in first["state_dict"].items():
        assert torch.equal(second["state_dict"][name], tensor), name
    assert first["lr_schedulers"] == second["lr_schedulers"]

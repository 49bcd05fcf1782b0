"""main.py as it is used: runs, folders, resuming, signals, crashes, several processes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from taming.checkpoint import load_run, read_checkpoint
from taming.config import load_config
from taming.errors import UserError
from taming.training import run_folder
from taming.training.arguments import parse_arguments
from taming.training.cli import learning_rate
from taming.training.cli import main as main_command
from tests.kit.images import truncate, write_image, write_images
from tests.kit.launch import Launcher, heed_signals
from tests.kit.processes import TWO_DEVICES, two_train
from tests.kit.training import small_vqgan, write_config
from tests.support import ROOT

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "2021-04-03T19-39-50")
    return tmp_path


def rows(run: Path) -> list[dict[str, str]]:
    [table] = run.glob("csv/*/metrics.csv")
    return list(csv.DictReader(table.open()))


def state(run: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return read_checkpoint(run / "checkpoints" / name)


def command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        preexec_fn=heed_signals,
    )


def test_a_run_leaves_what_users_look_for(tmp_path: Path, caplog: Any) -> None:
    base = write_config(tmp_path, small_vqgan())
    main(["--base", base, "-t", "True", "--max_epochs", "2", "--max_steps", "-1", "-f", "_x"])
    run = tmp_path / "logs" / "2021-04-03T19-39-50_small_x"
    checkpoints = {path.name for path in (run / "checkpoints").iterdir()}
    assert checkpoints == {"epoch=000000.ckpt", "epoch=000001.ckpt", "last.ckpt"}
    assert {path.name for path in (run / "configs").iterdir()} == {
        "2021-04-03T19-39-50-project.yaml",
        "2021-04-03T19-39-50-lightning.yaml",
    }
    train = {path.name for path in (run / "images" / "train").iterdir()}
    assert "inputs_gs-000001_e-000000_b-000000.png" in train
    assert "reconstructions_gs-000004_e-000001_b-000000.png" in train
    assert "inputs_gs-000006_e-000001_b-000000.png" in {
        path.name for path in (run / "images" / "val").iterdir()
    }
    assert list(run.glob("tensorboard/events*"))
    logged = rows(run)
    steps = [int(row["step"]) for row in logged if row["train/aeloss"]]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert "learning rate 2.00e-04 = 1 (accumulate_grad_batches) * 1 (devices)" in caplog.text
    model, _, step = load_run(run)
    assert step == 6 and not model.training


def test_a_run_as_it_should_be_warns_of_nothing(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """With a schedule, a discriminator that is idle for now, and mixed precision."""
    config = small_vqgan()
    config.model.params.scheduler_config = {
        "target": "taming.lr_scheduler.CosineSchedule",
        "params": {"warm_up_steps": 1},
    }
    config.model.params.lossconfig.params.update(disc_start=2, skip_idle_discriminator=True)
    base = write_config(tmp_path, config)
    main(["--base", base, "-t", "--max_steps", "3", "--precision", "bf16-mixed"])
    assert [str(warning.message) for warning in recwarn] == []


def test_saved_configs_start_the_same_run(tmp_path: Path) -> None:
    base = write_config(tmp_path, small_vqgan())
    main(["--base", base, "-t", "--max_steps", "1", "model.params.n_embed=8"])
    [project] = tmp_path.glob("logs/*/configs/*-project.yaml")
    [lightning] = tmp_path.glob("logs/*/configs/*-lightning.yaml")
    assert OmegaConf.load(project).model.params.n_embed == 8
    assert OmegaConf.load(lightning).lightning.trainer.max_steps == 1


def test_learning_rate_scaling(tmp_path: Path, caplog: Any) -> None:
    config = OmegaConf.create({"base_learning_rate": 0.5})
    assert learning_rate(config, 3, 5, 7, scale=True) == 52.5
    assert learning_rate(config, 3, 5, 7, scale=False) == 0.5
    base = write_config(tmp_path, small_vqgan())
    flags = ["--base", base, "-t", "--max_steps", "2"]
    main([*flags, "--accumulate_grad_batches", "2", "--gradient_clip_val", "1.0"])
    assert "4.00e-04 = 2 (accumulate_grad_batches)" in caplog.text
    [run] = tmp_path.glob("logs/*")
    assert state(run)["global_step"] == 2
    assert state(run)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(4e-4)
    main([*flags, "-n", "plain", "--scale_lr", "false"])
    assert "learning rate 5.00e-05 (base_learning_rate, not scaled)" in caplog.text


def test_resuming_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    base = write_config(tmp_path, small_vqgan())
    whole = ["--base", base, "-t", "-n", "whole", "--max_steps", "5"]
    main(whole)
    main(["--base", base, "-t", "-n", "parts", "--max_steps", "2"])
    parts = tmp_path / "logs" / "2021-04-03T19-39-50_parts"
    assert state(parts)["global_step"] == 2
    os.environ[run_folder._TIME_VARIABLE] = "2022-01-01T00-00-00"
    main(["-r", str(parts), "-t", "--max_steps", "5"])
    first = state(tmp_path / "logs" / "2021-04-03T19-39-50_whole")
    second = state(parts)
    assert first["global_step"] == second["global_step"] == 5
    for name, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], value, msg=name)
    assert len(list(parts.glob("configs/*-project.yaml"))) == 2
    assert len(list(parts.glob("csv/*/metrics.csv"))) == 2  # nothing overwritten


def test_a_crash_saves_and_is_raised_again(tmp_path: Path) -> None:
    base = write_config(tmp_path, small_vqgan(length=12, fail_at=11))
    with pytest.raises(UserError, match=r"item 11 .*Noise raises RuntimeError: .*cannot be read"):
        main(["--base", base, "-t", "-d"])
    [run] = tmp_path.glob("logs/debug_runs/*_small")
    assert 1 <= state(run)["global_step"] <= 2


@pytest.mark.slow
def test_sigusr1_saves_and_goes_on(tmp_path: Path) -> None:
    config = small_vqgan(length=100000)
    base = write_config(tmp_path, config)
    process = command("--base", base, "-t", "--max_epochs", "1", "--max_steps", "-1")
    try:
        last = _wait_for(tmp_path, "logs/*/images/train/inputs_gs-000001*.png").parents[2]
        last = last / "checkpoints" / "last.ckpt"
        process.send_signal(signal.SIGUSR1)
        _wait_for(tmp_path, str(last.relative_to(tmp_path)))
        assert process.poll() is None
        step = read_checkpoint(last)["global_step"]
        assert step >= 1
        later = 2 ** step.bit_length()  # images are saved at powers of two
        _wait_for(tmp_path, f"logs/*/images/train/inputs_gs-{later:06}*.png")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert read_checkpoint(last)["global_step"] > step  # saved once more when it was interrupted


def _wait_for(folder: Path, pattern: str, seconds: float = 90) -> Path:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = list(folder.glob(pattern))
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"{pattern} did not appear")


@pytest.mark.slow
def test_two_processes_train_as_one(launcher: Launcher, tmp_path: Path) -> None:
    """DDP: the first stage with its two optimizers, resumed, then the transformer over it."""
    base = write_config(tmp_path, small_vqgan(length=16))
    flags = ["-t", *TWO_DEVICES]
    process = command("--base", base, *flags, "-n", "first", "--max_steps", "1")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "* 2 (devices) * 4 (batch_size)" in output and output.count("legacy: true") == 1
    [run] = tmp_path.glob("logs/*")
    main(["--base", base, "-t", "-n", "one", "--max_steps", "1", "data.params.batch_size=8"])
    two, one = state(run), state(tmp_path / "logs" / "2021-04-03T19-39-50_one")
    for name, value in one["state_dict"].items():
        if name.startswith(("encoder.", "decoder.")) and value.dim() > 1:
            # Adam's first step is the gradient's sign: single elements may be noise.
            close = torch.isclose(two["state_dict"][name], value, atol=2e-5).float().mean()
            assert close > 0.98, name
    time = {run_folder._TIME_VARIABLE: "2021-04-03T19-39-50"}
    ended = two_train(launcher, tmp_path, ["-r", str(run), *flags, "--max_steps", "3"], **time)
    assert ended.code == 0, ended.output
    assert state(run)["global_step"] == 3
    second = ["--base", _transformer(tmp_path, run), *flags, "--max_steps", "3"]
    ended = two_train(launcher, tmp_path, second, **time)
    assert ended.code == 0, ended.output
    [second] = tmp_path.glob("logs/*_transformer")
    assert state(second)["global_step"] == 3


def _transformer(folder: Path, first_stage: Path) -> str:
    config = load_config([ROOT / "configs" / "digits_transformer.yaml"])
    small = small_vqgan()
    params = config.model.params
    stage = params.first_stage_config.params
    stage.ckpt_path, stage.n_embed, stage.embed_dim = str(first_stage), 16, 4
    stage.ddconfig = small.model.params.ddconfig
    params.transformer_config.params = {
        "vocab_size": 16,
        "block_size": 64,
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 16,
    }
    config.data = small.data
    config.lightning = small.lightning
    return write_config(folder, config, "transformer.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max_stepz", "3"], ["unknown argument --max_stepz; did you mean --max_steps?"]),
        (["--max_steps", "soon"], ["--max_steps takes int"]),
        (["-t", "perhaps"], ["'perhaps' is neither true nor false"]),
        (["--base", "absent.yaml"], ["no config file absent.yaml"]),
        ([], ["nothing to do"]),
        (["-n", "x", "-r", "logs/y"], ["cannot go together"]),
        (["-r", "logs/y"], ["no run or checkpoint at logs/y"]),
        (["--base", "{base}", "--gpus", "0,"], ["asks for a GPU, but torch finds none"]),
        (["--base", "{base}", "model.params.n_embd=3"], ["model.params", "'n_embed'"]),
        (
            ["--base", "{base}", "model.target=taming.models.vqgan.VQModle"],
            ["model:", "did you mean"],
        ),
        (["--base", "{base}", "data.params.batch_size=99"], ["batch_size is 99", "12 items"]),
        (["--base", "{base}", "model.base_learning_rate=fast"], ["model.base_learning_rate"]),
        (["--base", "{base}", "--strategy", "dpp"], ["the Trainer refuses", "dpp"]),
        (["--base", "{base}", "lightning.trainer.max_step=3"], ["'max_steps'"]),
    ],
)
def test_mistakes_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base = write_config(tmp_path, small_vqgan())
    with pytest.raises(UserError) as caught:
        main([argument.format(base=base) for argument in arguments])
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("logs/*"))


def test_a_resume_folder_without_last_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "logs" / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no checkpoints/last.ckpt"):
        main(["-r", "logs/run", "-t"])
    (tmp_path / "logs" / "run" / "checkpoints" / "last.ckpt").write_text("no checkpoint")
    write_config(tmp_path, small_vqgan())
    with pytest.raises(UserError, match="last.ckpt is (a text file|no checkpoint)"):
        main(["-r", "logs/run", "--base", "small.yaml", "-t"])


def test_the_command_prints_one_line_and_exits_with_2(launcher: Launcher, tmp_path: Path) -> None:
    ended = launcher.run(["--base", "absent.yaml"], tmp_path)
    assert ended.code == 2
    assert ended.last_line == "error: there is no config file absent.yaml"


def test_a_damaged_image_ends_training_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_images(tmp_path / "images", 12, 16, 16)
    jpeg = Path(write_image(tmp_path / "images" / "bad.jpg", 400, 400))
    truncate(jpeg, 0.8)
    (tmp_path / "list.txt").write_text("\n".join([*files, str(jpeg)]))
    config = small_vqgan()
    listed = {"size": 16, "training_images_list_file": str(tmp_path / "list.txt")}
    config.data.params.train = {"target": "taming.data.custom.CustomTrain", "params": listed}
    config.data.params.num_workers = 1
    with pytest.raises(SystemExit, match="2"):
        main_command(["--base", write_config(tmp_path, config), "-t", "--max_steps", "100"])
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        message.startswith(f"error: {jpeg}, from CustomTrain's list")
        and "truncated" in message.lower()
    )
    [run] = tmp_path.glob("logs/*")
    assert state(run)["global_step"] >= 1  # what was trained until then is kept


def test_a_logger_by_config(tmp_path: Path) -> None:
    config = small_vqgan()
    logger = {"save_dir": str(tmp_path / "own"), "name": "x", "version": "y"}
    config.lightning.logger = {
        "target": "pytorch_lightning.loggers.CSVLogger",
        "params": logger,
    }
    main(["--base", write_config(tmp_path, config), "-t", "--max_steps", "1"])
    assert (tmp_path / "own" / "x" / "y" / "metrics.csv").is_file()
    assert not list(tmp_path.glob("logs/*/tensorboard"))


def test_the_names_of_main_are_those_of_training() -> None:
    import main as command
    from taming import training

    assert set(command.__all__) == set(training.__all__) and command.main is main_command
    for name in command.__all__:
        assert getattr(command, name) is getattr(training, name)


def test_arguments_are_told_apart() -> None:
    args, options, overrides = parse_arguments(
        [
            "-b",
            "a.yaml",
            "b.yaml",
            "x.y=1",
            "-t",
            "True",
            "--gpus",
            "0,",
            "--max_steps",
            "5",
            "--precision=bf16-mixed",
            "--detect_anomaly",
            "--seed",
            "7",
            "model.z=2",
        ]
    )
    assert [str(path) for path in args.base] == ["a.yaml", "b.yaml"]
    assert (args.train, args.seed) == (True, 7)
    assert options == {
        "gpus": "0,",
        "max_steps": 5,
        "precision": "bf16-mixed",
        "detect_anomaly": True,
    }
    assert overrides == ["x.y=1", "model.z=2"]


def test_an_override_is_no_switchs_value() -> None:
    args, _, overrides = parse_arguments(["-b", "a.yaml", "-t", "model.z=2", "--no-test", "x.y=1"])
    assert args.train and args.no_test and overrides == ["model.z=2", "x.y=1"]
    _, options, _ = parse_arguments(["-b", "a.yaml", "--max_steps", "-1", "--detect_anomaly"])
    assert options == {"max_steps": -1, "detect_anomaly": True}
    switches = {"-t": "train", "--train": "train", "-d": "debug", "--debug": "debug"}
    for word, name in {**switches, "--scale_lr": "scale_lr", "--no-test": "no_test"}.items():
        args, _, overrides = parse_arguments(["-b", "a.yaml", word, "x.y=1"])
        assert getattr(args, name) is True and overrides == ["x.y=1"]

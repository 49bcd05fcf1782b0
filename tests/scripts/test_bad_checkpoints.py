"""Every command, given every kind of wrong file as a run's checkpoint: one sentence, no trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from scripts import (
    complete,
    export,
    extract_submodel,
    make_samples,
    reconstruct,
    report,
    sample_fast,
)
from taming.training import run_folder
from taming.training.cli import main as train
from tests.kit.runs import tiny_run
from tests.kit.training import small_vqgan, write_config


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def wrong_files(good: Path, room: Path) -> dict[str, tuple[bytes, str]]:
    """Kind -> (a file's content, a part of what is said about it)."""

    def saved(content: Any) -> bytes:
        torch.save(content, room / "saved")
        return (room / "saved").read_bytes()

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(room / "image.png")
    whole = good.read_bytes()
    return {
        "text": (b"hello\n", "is a text file"),
        "image": ((room / "image.png").read_bytes(), "is an image"),
        "empty": (b"", "is an empty file"),
        "cut short": (whole[: len(whole) // 2], "is cut short"),
        "code": (saved({"state_dict": {}, "x": _Code()}), "refused as unsafe"),
        "another model's": (saved({"state_dict": {"a.weight": torch.ones(3)}}), "a"),
    }


KINDS = ("text", "image", "empty", "cut short", "code", "another model's")


def room_for(folder: Path) -> Path:
    """What the commands need beside a run: an image, data, a config that starts from the run."""
    (folder / "images").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "images" / "a.png")
    config = small_vqgan()
    OmegaConf.save({"data": config.data}, folder / "data.yaml")
    write_config(folder, config, "first_stage.yaml")
    return folder


COMMANDS: dict[str, Callable[[str, str], None]] = {
    "sample_fast": lambda run, out: sample_fast.main(["-r", run, "-o", out, "-n", "1"]),
    "make_samples": lambda run, out: make_samples.main(
        ["-r", run, "-b", "data.yaml", "--outdir", out]
    ),
    "reconstruct": lambda run, out: reconstruct.main(["-r", run, "-o", out, "images"]),
    "complete": lambda run, out: complete.main(["-r", run, "-o", out, "--image", "images/a.png"]),
    "report": lambda run, out: report.main(["-r", run, "-o", out, "-b", "data.yaml"]),
    "safetensors": lambda run, out: export.main(["safetensors", run, f"{out}.safetensors"]),
    "diffusers": lambda run, out: export.main(["diffusers", run, out]),
    "onnx": lambda run, out: export.main(["onnx", run, out]),
    "extract_submodel": lambda run, out: extract_submodel.main(
        [f"{run}/checkpoints/last.ckpt", f"{out}.ckpt"]
    ),
    "train from it": lambda run, out: train(
        ["--base", "first_stage.yaml", "-t", "True", f"model.params.ckpt_path={run}"]
    ),
    "go on with it": lambda run, out: train(["-r", run, "--base", "data.yaml", "-t"]),
}


def files(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_one_sentence_and_nothing_changed(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "2021-04-03T19-39-50")
    (tmp_path / "room").mkdir()
    room = room_for(tmp_path / "room")
    monkeypatch.chdir(room)
    run = tiny_run(room / "logs" / "run")
    checkpoint = run / "checkpoints" / "last.ckpt"
    for kind, (content, words) in wrong_files(checkpoint, tmp_path).items():
        checkpoint.write_bytes(content)
        before = files(room)
        with pytest.raises(SystemExit) as stop:
            COMMANDS[name](str(run), str(room / "out"))
        errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert stop.value.code == 2 and len(errors) == 1, kind
        assert words in errors[0] and "last.ckpt" in errors[0], (kind, errors)
        assert files(room) == before, kind


@pytest.mark.parametrize("kind", ["text", "image", "empty"])
def test_a_lone_file_is_told_before_what_is_beside_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A YAML beside it would be its config, and none would be asked for."""
    monkeypatch.chdir(tmp_path)
    content, words = wrong_files(tiny_run(tmp_path / "x") / "checkpoints/last.ckpt", tmp_path)[kind]
    for beside in ({}, {"list.yaml": "- a\n- b\n"}):
        for name, text in {"file": content, **beside}.items():
            Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(SystemExit):
            COMMANDS["sample_fast"]("file", "out")
        assert f"error: file {words}" in capsys.readouterr().err


def test_weights_alone_are_no_training_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(room_for(tmp_path))
    run = tiny_run(tmp_path / "logs" / "run")
    before = files(tmp_path)
    with pytest.raises(SystemExit):
        COMMANDS["go on with it"](str(run), "")
    told = capsys.readouterr().err.splitlines()[-1]
    assert "has weights, but no state of a training" in told
    assert f"model.params.ckpt_path={run}" in told
    assert files(tmp_path) == before

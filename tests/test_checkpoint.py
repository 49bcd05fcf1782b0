"""Weights from files: runs are found, wrong files refused in a sentence, nothing executed."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from taming.checkpoint import find_run, load_weights, read_checkpoint, save_atomic
from taming.errors import UserError


def make_run(folder: Path, checkpoint: str = "last.ckpt") -> Path:
    save_atomic({"state_dict": {"weight": torch.ones(2)}}, folder / "checkpoints" / checkpoint)
    (folder / "configs").mkdir()
    for time in ("2021-01-01", "2022-01-01"):
        for kind in ("lightning", "project"):
            (folder / "configs" / f"{time}-{kind}.yaml").write_text("{}")
    return folder


def test_a_run_is_found_by_folder_or_checkpoint(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    last = folder / "checkpoints" / "last.ckpt"
    for path in (folder, last):
        run = find_run(path)
        assert (run.folder, run.checkpoint) == (folder, last)
        assert [config.name for config in run.configs[2:]] == [
            "2021-01-01-project.yaml",
            "2022-01-01-project.yaml",
        ]


def test_runs_that_cannot_be_used_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run or checkpoint at .*gone"):
        find_run(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="stopped before its first save"):
        find_run(tmp_path / "empty")
    folder = make_run(tmp_path / "run", "epoch=000003.ckpt")
    with pytest.raises(UserError, match=r"pass one of its checkpoints, say .*epoch=000003.ckpt"):
        find_run(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_checkpoints_are_read(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": {"weight": torch.arange(3.0)}, "global_step": 7}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "a.ckpt")
    assert read["global_step"] == 7
    assert torch.equal(read["state_dict"]["weight"], torch.arange(3.0))


def test_bare_state_dicts_and_safetensors_are_read(tmp_path: Path) -> None:
    state = {"weight": torch.arange(3.0)}
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        read = read_checkpoint(tmp_path / name)["state_dict"]
        assert torch.equal(read["weight"], state["weight"])


def test_foreign_classes_of_old_checkpoints_are_inert(tmp_path: Path) -> None:
    content = {"state_dict": {"weight": torch.ones(1)}, "hparams": argparse.Namespace(lr=1)}
    torch.save(content, tmp_path / "old.ckpt")
    read = read_checkpoint(tmp_path / "old.ckpt")
    assert torch.equal(read["state_dict"]["weight"], torch.ones(1))
    assert not hasattr(read["hparams"], "lr")


class _Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": {}, "evil": _Malicious(tmp_path / "ran")}
    torch.save(content, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="evil.ckpt"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def _bad_files(folder: Path) -> list[Path]:
    good = folder / "good.ckpt"
    torch.save({"state_dict": {"weight": torch.randn(1000)}}, good)
    data = good.read_bytes()
    files = {
        "empty.ckpt": b"",
        "text.ckpt": b"hello\n",
        "image.ckpt": b"\x89PNG\r\n\x1a\n" + b"0" * 64,
    }
    files |= {f"cut{i}.ckpt": data[: len(data) * i // 10] for i in range(1, 10)}
    files |= {"list.ckpt": pickle.dumps([1, 2]), "cut.safetensors": data[:40]}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "zip.ckpt", "w") as archive:
        archive.writestr("a.txt", "not a checkpoint")
    return [folder / name for name in [*files, "zip.ckpt", "absent.ckpt"]]


def test_every_wrong_file_is_named_in_one_sentence(tmp_path: Path) -> None:
    for path in _bad_files(tmp_path):
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), path


def test_weights_must_fit(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "loss": nn.Linear(1, 1)})
    state = {name: value + 1 for name, value in model.state_dict().items()}
    without_loss = {k: v for k, v in state.items() if not k.startswith("loss.")}
    assert load_weights(model, without_loss) == ["loss.bias", "loss.weight"]
    assert torch.equal(model["a"].weight, state["a.weight"])
    with pytest.raises(UserError, match=r"'a.weight' has shape \[4, 2\].*makes it \[3, 2\]"):
        load_weights(model, {**state, "a.weight": torch.zeros(4, 2)})
    with pytest.raises(UserError, match="x.ckpt does not fit the config: a: 1 keys missing"):
        load_weights(model, {"a.bias": state["a.bias"]}, source="x.ckpt")
    with pytest.raises(UserError, match="b: 1 keys unknown"):
        load_weights(model, {**state, "b.weight": torch.zeros(1)})
    assert "a.weight" in load_weights(model, state, ignore_keys=["a.weight"])


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_atomic({"step": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        save_atomic({"step": lambda: None}, path)
    assert torch.load(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]

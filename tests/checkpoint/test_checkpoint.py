"""Weights from files: runs are found, wrong files refused in a sentence, nothing executed."""

from __future__ import annotations

import pickle
from pathlib import Path

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


def test_downloads_of_published_models_are_runs(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    save_atomic({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "model.ckpt")
    run = find_run(tmp_path)
    assert (run.checkpoint.name, [path.name for path in run.configs]) == (
        "model.ckpt",
        ["config.yaml"],
    )


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


def test_weights_must_fit(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "loss": nn.Linear(1, 1)})
    state = {name: value + 1 for name, value in model.state_dict().items()}
    without_loss = {k: v for k, v in state.items() if not k.startswith("loss.")}
    assert load_weights(model, without_loss) == ["loss.bias", "loss.weight"]
    assert torch.equal(model["a"].weight, state["a.weight"])
    with pytest.raises(UserError, match=r"'a.weight' has shape \[4, 2\].*makes it \[3, 2\]"):
        load_weights(model, {**state, "a.weight": torch.zeros(4, 2)})
    with pytest.raises(UserError, match="x.ckpt does not fit the config: a: 1 key missing"):
        load_weights(model, {"a.bias": state["a.bias"]}, source="x.ckpt")
    with pytest.raises(UserError, match="b: 1 key unknown"):
        load_weights(model, {**state, "b.weight": torch.zeros(1)})
    assert "a.weight" in load_weights(model, state, ignore_keys=["a.weight"])


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_atomic({"step": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        save_atomic({"step": lambda: None}, path)
    assert torch.load(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]

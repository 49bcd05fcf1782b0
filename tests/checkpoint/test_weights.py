"""Weights into models, and checkpoints that are written whole or not at all."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from taming.checkpoint import load_file, load_weights, save_atomic
from taming.checkpoint.weights import _parts, _version
from taming.errors import UserError


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


def test_parts_of_a_file_are_small_and_some_names_are_left_as_they_are(tmp_path: Path) -> None:
    assert list(_parts({"a": 2**24, "b": 1, "c": 2**24, "d": 0})) == [["a"], ["b"], ["c", "d"]]
    assert next(_parts(dict.fromkeys("abc", 2**28))) == ["a"]
    model = nn.Linear(2, 3)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    save_atomic({"state_dict": state}, tmp_path / "x.ckpt")
    before = model.weight.clone()
    load_file(model, tmp_path / "x.ckpt", ["weight"])
    assert torch.equal(model.bias, state["bias"]) and torch.equal(model.weight, before)


def test_tensors_that_share_memory_go_on_sharing_it() -> None:
    model = nn.Module()
    model.register_buffer("whole", torch.zeros(4))
    model.register_buffer("part", model.whole[1:3])
    model.register_buffer("later", model.whole[3:])
    state = {"whole": torch.arange(4.0), "part": torch.tensor([1.0, 2.0])}
    load_weights(model, {**state, "later": torch.tensor([3.0])}, assign=True)
    assert model.whole.tolist() == [0, 1, 2, 3]
    model.whole[1] = model.whole[3] = 9
    assert model.part.tolist() == [9, 2] and model.later.tolist() == [9]


def test_another_file_of_the_same_size_and_time_is_another_version(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    assert _version(tmp_path / "a") == _version(tmp_path / "a") != _version(tmp_path / "b")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_atomic({"step": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        save_atomic({"step": lambda: None}, path)
    assert torch.load(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_losses_of_stages_may_be_missing_or_in_excess() -> None:
    def stage(*parts: str) -> nn.Module:
        return nn.ModuleDict({"stage": nn.ModuleDict({part: nn.Linear(1, 1) for part in parts})})

    plain, with_loss = stage("encoder"), stage("encoder", "loss")
    assert load_weights(plain, with_loss.state_dict()) == []
    assert load_weights(with_loss, plain.state_dict()) == ["stage.loss.bias", "stage.loss.weight"]
    with pytest.raises(UserError, match="decoder"):
        load_weights(plain, stage("encoder", "decoder").state_dict())

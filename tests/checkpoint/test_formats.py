"""Old and broken checkpoints: read without running anything, or refused in a sentence."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import typing
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import save_file

from taming.checkpoint.formats import index_of, read_checkpoint
from taming.errors import UserError
from tests.kit.archives import zeros_in_zip
from tests.support import Malicious

BOTH = pytest.mark.parametrize("zipped", [True, False])


def save(content: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def lightning_1_0(folder: Path) -> dict[str, Any]:
    """What checkpoints of the original's time hold, beside weights."""
    counts: dict[str, Any] = collections.defaultdict(int)
    counts["a"] = 1
    return {
        "epoch": np.int64(3),
        "global_step": 1000,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {
            ModelCheckpoint: {"best_model_score": np.float64(0.25), "path": folder / "a.ckpt"}
        },
        "state_dict": collections.OrderedDict(weight=torch.arange(6.0).reshape(2, 3)),
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(
            lr=1e-4, more=OmegaConf.create({"a": [1, {"b": 2}]})
        ),
        "hints": (typing.Any, dict, int),
        "counts": counts,
        "flag": np.bool_(True),
        "array": np.arange(3),
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": np.float32(0.5)}]}],
    }


@BOTH
def test_lightning_1_0_content_is_read(tmp_path: Path, zipped: bool) -> None:
    read = read_checkpoint(save(lightning_1_0(tmp_path), tmp_path / "old.ckpt", zipped))
    assert torch.equal(read["state_dict"]["weight"], torch.arange(6.0).reshape(2, 3))
    assert (read["epoch"], read["global_step"], read["flag"]) == (3, 1000, True)
    [(callback, state)] = read["callbacks"].items()
    assert callback is not ModelCheckpoint and state["best_model_score"] == 0.25
    assert read["counts"] == {"a": 1} and type(read["counts"]) is dict
    assert read["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    assert not isinstance(read["hyper_parameters"], argparse.Namespace)


@BOTH
def test_numpy_scalars_by_both_names(tmp_path: Path, zipped: bool) -> None:
    others = [np.float16(1.5), np.float32(0.25), np.int8(-7), np.uint64(2**40), np.bool_(True)]
    content = {"state_dict": {"weight": torch.ones(1)}, "score": np.float64(1.5), "others": others}
    path = save(content, tmp_path / "new.ckpt", zipped)
    data = path.read_bytes()
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        assert name in data or name == b"numpy.core.multiarray"
    read = read_checkpoint(path)
    assert read["score"] == 1.5 and read["others"] == [1.5, 0.25, -7, 2**40, True]
    if not zipped:  # a zip's lengths and checksums would have to be rewritten
        path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert read_checkpoint(path)["score"] == 1.5


@BOTH
def test_code_in_a_checkpoint_is_refused_by_name_and_not_run(tmp_path: Path, zipped: bool) -> None:
    command = f"touch {tmp_path / 'ran'}"
    calls = {
        f"{os.system.__module__}.system": (os.system, command),
        "builtins.eval": (eval, f"__import__('os').system('{command}')"),
        "torch.hub.load": (torch.hub.load, "a/b", "c"),
    }
    for name, call in calls.items():
        content = {"state_dict": {}, "evil": Malicious(*call)}
        path = save(content, tmp_path / "evil.ckpt", zipped)
        with pytest.raises(UserError, match=f"evil.ckpt would run '{name}'.*refused as unsafe"):
            read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_stand_in_is_not_called_as_the_real_one(tmp_path: Path) -> None:
    """numpy's own loader of files would read, and numpy.save write, what it is told to."""
    target = tmp_path / "written.npy"
    content = {"state_dict": {"weight": torch.ones(1)}, "a": Malicious(np.save, str(target), [1])}
    read_checkpoint(save(content, tmp_path / "a.ckpt"))
    assert not target.exists()


def test_newer_pickles_are_refused_by_name_too(tmp_path: Path) -> None:
    path = tmp_path / "new.ckpt"
    path.write_bytes(pickle.dumps(Malicious(os.system, "true"), protocol=4))
    with pytest.raises(UserError, match="would run 'posix.system'|would run 'nt.system'"):
        read_checkpoint(path)


def _cut(data: bytes) -> dict[str, bytes]:
    return {str(i): data[: max(4, len(data) * i // 10)] for i in range(10)}


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_files_cut_anywhere_are_recognized(tmp_path: Path, kind: str) -> None:
    state = {"weight": torch.randn(3000), "bias": torch.randn(500)}
    path = tmp_path / ("whole.safetensors" if kind == "safetensors" else "whole.ckpt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        save({"state_dict": state}, path, kind == "zip")
    for name, data in _cut(path.read_bytes()).items():
        cut = tmp_path / f"cut{name}{path.suffix}"
        cut.write_bytes(data)
        with pytest.raises(UserError, match=f"{cut.name} is .*fetch or save it again") as caught:
            read_checkpoint(cut)
        assert "\n" not in str(caught.value)
        assert cut.read_bytes() == data


def test_every_wrong_file_is_called_by_its_kind(tmp_path: Path) -> None:
    files = {
        "empty file": b"",
        "text file": b"hello\n",
        "web page": b"\n<!DOCTYPE html><html></html>",
        "image": b"\x89PNG\r\n\x1a\n" + b"0" * 64,
        "no checkpoint": b"\x80\x02\0\xff" * 25,
        "damaged": b"\x96" + (2**62).to_bytes(8, "little") + b"\xff" * 50,  # that many bytes
        "no model weights": pickle.dumps([1, 2]),
    }
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("model.ckpt", b"inside")
    files["archive without weights"] = (tmp_path / "archive.zip").read_bytes()
    for what, content in files.items():
        path = tmp_path / "wrong.ckpt"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{path} (is|holds) .*{what}|no checkpoint") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="there is no checkpoint at"):
        read_checkpoint(tmp_path / "absent.ckpt")
    for content in ({"epoch": 1}, {}, torch.zeros(3)):
        save(content, tmp_path / "no_weights.ckpt")
        with pytest.raises(UserError, match="holds no model weights"):
            read_checkpoint(tmp_path / "no_weights.ckpt")


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
    save(state, tmp_path / "old.safetensors", zipped=False)  # of another kind than its name
    for name in ("a.pt", "a.safetensors", "old.safetensors"):
        content = read_checkpoint(tmp_path / name)
        assert torch.equal(content["state_dict"]["weight"], state["weight"])
        assert list(content) == ["state_dict"]
    torch.save({"state_dict": None, "model": state, "step": 3}, tmp_path / "b.pt")
    content = read_checkpoint(tmp_path / "b.pt")
    assert content["step"] == 3 and content["state_dict"].keys() == state.keys()


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
def test_shards_are_read_by_their_index(tmp_path: Path, ending: str) -> None:
    shard = tmp_path / f"model-00001-of-00002{ending}"
    assert index_of(shard) == shard
    index = tmp_path / f"model{ending}.index.json"
    for content in ('{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}', "[]"):
        index.write_text(content)
        assert index_of(shard) == index
        with pytest.raises(UserError, match="is no index of weights: it has no 'weight_map'"):
            read_checkpoint(shard)


def test_compressed_checkpoints_are_refused(tmp_path: Path) -> None:
    """They could hold any number of zeros; torch writes none."""
    noise = torch.randn(2**12)  # hardly gets smaller
    for state in ({"a": torch.zeros(2**22)}, {"a": torch.zeros(2**11), "b": noise}):
        save({"state_dict": state}, tmp_path / "a.ckpt")
        with (
            zipfile.ZipFile(tmp_path / "a.ckpt") as archive,
            zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as other,
        ):
            for name in archive.namelist():
                other.writestr(name, archive.read(name))
        read_checkpoint(tmp_path / "a.ckpt")
        with pytest.raises(UserError, match=r"it says that it holds (16|2\d),[0-9,]+ bytes"):
            read_checkpoint(tmp_path / "b.ckpt")
    (tmp_path / "c.ckpt").write_bytes(zeros_in_zip("archive/data.pkl", 2**28, b"\x80\x02"))
    with pytest.raises(UserError, match="it says that it holds 268,435,458 bytes"):
        read_checkpoint(tmp_path / "c.ckpt")

"""Weights that are divided among processes: the first one's view, of two that need not exist."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from taming.checkpoint import read_checkpoint, save_atomic
from taming.checkpoint.checksum import DamagedFileError
from taming.checkpoint.shards import SHARDS, described, filled, has_shards, remove_unused, split
from taming.errors import UserError
from taming.modules.transformer.gpt import GPT
from taming.sharding import is_sharded, load_shards, save_shards, shard, sharded_like, whole


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Of two processes, of which the other answers nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def small_gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(8, 6, n_layer=2, n_head=2, n_embd=4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_blocks_are_gathered_one_by_one_in_the_dtype(
    mesh: DeviceMesh, dtype: torch.dtype | None
) -> None:
    model, plain = small_gpt(), small_gpt()
    shard(model, model.blocks, mesh, dtype)
    shard(model, model.blocks, mesh, dtype)  # once is enough
    for (name, own), (_, before) in zip(
        model.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert is_sharded(own) and own.shape == before.shape and own.dtype == torch.float32
        part = own.to_local()  # type: ignore[attr-defined]
        assert torch.equal(part, before.chunk(2)[0]), name
        assert torch.equal(sharded_like(before.detach(), own).to_local(), part)  # type: ignore[attr-defined]
    block, other = model.blocks[0], model.blocks[1]
    block.unshard()  # type: ignore[operator]
    assert {p.dtype for p in block.parameters()} == {dtype or torch.float32}
    assert all(map(is_sharded, other.parameters())) and not any(map(is_sharded, block.parameters()))
    assert is_sharded(model.head.weight) and model.head.weight.dtype == torch.float32


def test_what_is_not_sharded_is_left_alone() -> None:
    tensor = torch.ones(3)
    assert whole(tensor) is tensor and sharded_like(tensor, None) is tensor
    assert sharded_like(tensor, torch.zeros(3)) is tensor and not is_sharded(tensor)


# ---------------------------------------------------------------------- files


def saved(folder: Path) -> Path:
    """A checkpoint in shards, as one process alone writes it."""
    shards = folder / SHARDS / "step=000001"
    save_shards({"state_dict.a": torch.arange(6.0)}, shards)
    content = {"global_step": 1, "state_dict": {"a": torch.empty(6, device="meta")}}
    content["state_dict"]["b"] = torch.ones(2)  # type: ignore[index]
    save_atomic({**content, SHARDS: described(shards)}, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_a_checkpoint_has_the_shapes_of_what_is_in_its_shards(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = read_checkpoint(path)
    assert has_shards(content) and not has_shards(split(filled(content, path))[0])
    assert content["state_dict"]["a"].is_meta and content["state_dict"]["a"].shape == (6,)
    state = filled(content, path)["state_dict"]
    assert state["a"].tolist() == [0, 1, 2, 3, 4, 5] and state["b"].tolist() == [1, 1]
    left_out = filled(content, path, lambda place: None)["state_dict"]
    assert left_out["a"].is_meta and torch.equal(left_out["b"], state["b"])
    remove_unused(tmp_path, {f"{SHARDS}/step=000001"})
    assert (tmp_path / SHARDS / "step=000001").is_dir()
    remove_unused(tmp_path, set())
    assert not (tmp_path / SHARDS).exists()


def test_missing_and_short_shards_are_damage(tmp_path: Path) -> None:
    path = saved(tmp_path)
    [file] = (tmp_path / SHARDS).glob("*/*.distcp")
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(DamagedFileError, match="needs its shard .*distcp, which is cut short"):
        read_checkpoint(path)
    file.unlink()
    with pytest.raises(DamagedFileError, match="distcp, which is missing"):
        read_checkpoint(path)


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code that a file of shards would run",)


@pytest.mark.parametrize("index", [Runs(), {}, None])
def test_an_index_that_runs_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], index: object
) -> None:
    path = saved(tmp_path)
    [shards] = (tmp_path / SHARDS).iterdir()
    content = read_checkpoint(path)
    (shards / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(UserError, match=r"cannot be read \(its index .metadata: it"):
        load_shards({"state_dict.a": torch.zeros(6)}, shards)
    assert "run" not in capsys.readouterr().out
    with pytest.raises(DamagedFileError):
        filled(content, path)

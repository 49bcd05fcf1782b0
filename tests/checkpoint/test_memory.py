"""Weights from files: memory is taken once, and the files stay as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import SGD

from taming.checkpoint import load_file, load_run, load_weights, read_checkpoint, save_atomic
from taming.errors import UserError
from tests.kit.datasets import images
from tests.kit.models import build, first_stage_config
from tests.kit.training import fit
from tests.memory import KINDS, WAYS

NAMES = ("model.ckpt", "model.safetensors")


@pytest.fixture(scope="module")
def peaks() -> dict[str, float]:
    """Sizes of the model at the peak, by way in and kind of file."""
    command = [sys.executable, "-m", "tests.memory"]
    root = Path(__file__).parents[2]
    return json.loads(subprocess.run(command, cwd=root, check=True, stdout=-1).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own figures")
def test_a_model_takes_its_size_in_memory_once(peaks: dict[str, float]) -> None:
    assert len(peaks) == len(WAYS) * len(KINDS)
    old = peaks.pop(f"ckpt_path {KINDS[2]}")  # read as a whole, beside a model with initial values
    assert old < 2.3
    assert {name: ratio for name, ratio in peaks.items() if not 0.9 < ratio <= 1.3} == {}


def write(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    else:
        save_atomic({"state_dict": state}, path)
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["VQModel", "EMAVQ"])
def test_training_changes_the_model_and_not_its_file(tmp_path: Path, name: str, kind: str) -> None:
    config = first_stage_config(f"taming.models.vqgan.{kind}", legacy=False)
    path = write(build(config).state_dict(), tmp_path / name)
    before, data = path.read_bytes(), images()
    config["params"]["ckpt_path"] = str(path)
    model = build(config)
    loaded = {key: value.clone() for key, value in model.state_dict().items()}
    fit(model, {"image": data}, tmp_path)
    moved = {k for k, value in model.state_dict().items() if not torch.equal(value, loaded[k])}
    assert {"encoder.conv_in.weight", "decoder.conv_out.bias"} <= moved
    assert "quantize.embedding.weight" in moved and "loss.discriminator.main.0.weight" in moved
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_a_file_may_be_overwritten_once_its_weights_are_copied(tmp_path: Path, name: str) -> None:
    """As notebooks do that save where they have loaded from."""
    state = build(first_stage_config(n_embed=5000)).state_dict()
    path = write(state, tmp_path / name)
    model = build(first_stage_config(n_embed=5000, ckpt_path=str(path)))
    with path.open("r+b") as file:
        file.truncate(100)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    torch.save({"state_dict": model.state_dict()}, path.with_suffix(".ckpt"))
    model.init_from_ckpt(str(path.with_suffix(".ckpt")))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_a_loaded_run_may_be_replaced(tmp_path: Path, name: str) -> None:
    config = first_stage_config(n_embed=5000)
    state = build(config).state_dict()
    path = write(state, tmp_path / name)
    content = path.read_bytes()
    OmegaConf.save({"model": config}, tmp_path / "config.yaml")
    model, _, _ = load_run(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[..., :1] += 1  # in a page of memory of its own from now on
    assert path.read_bytes() == content
    write({"weight": torch.zeros(1)}, tmp_path / f"new-{name}").replace(path)
    assert path.stat().st_size < 10_000
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter[..., 1:], state[key][..., 1:]), key
        assert torch.equal(parameter[..., :1], state[key][..., :1] + 1), key
    saved = write(model.state_dict(), tmp_path / "again.ckpt")
    assert saved.stat().st_size < 1.1 * sum(value.nbytes for value in state.values()) + 50_000


def test_a_large_file_is_copied_in_parts(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(9)))  # 4 MiB each
    state = {name: torch.rand_like(tensor) for name, tensor in model.state_dict().items()}
    path, parts = write(state, tmp_path / "a.ckpt"), list[int]()
    model.register_load_state_dict_pre_hook(lambda _, given, *about: parts.append(len(given)))
    assert load_file(model, path) == path
    assert len(parts) == 3 and sum(parts) == 18
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())

    def replace_it(module: nn.Module, *about: object) -> None:
        write(state, tmp_path / "b.ckpt").replace(path)

    model.register_load_state_dict_pre_hook(replace_it)
    with pytest.raises(UserError, match="a.ckpt was replaced while it was being read"):
        load_file(model, path)


def test_optimizers_keep_their_parameters(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = SGD(model.parameters(), lr=1.0)
    path = write({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "a.ckpt")
    load_weights(model, read_checkpoint(path)["state_dict"], assign=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, torch.zeros(2, 3)) and torch.equal(model.bias, torch.zeros(2))


class Masked(nn.Module):
    """Two parts with weights of their own, and one mask between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        mask = torch.zeros(4)
        self.register_buffer("mask", mask)
        self.register_buffer("same_mask", mask)


def pointers(state: dict[str, Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in state.items()}


@pytest.mark.parametrize(
    "change",
    ["none", "shared", "overlapping", "half", "transposed"],
)
def test_memory_is_taken_only_where_nothing_else_has_it(change: str) -> None:
    model, whole = Masked(), torch.arange(20.0)
    before = pointers(model.state_dict())
    state: dict[str, Any] = {name: torch.rand_like(t) for name, t in model.state_dict().items()}
    if change == "shared":
        state["second.weight"] = state["first.weight"]
    elif change == "overlapping":
        state |= {"first.weight": whole[:16].view(4, 4), "second.weight": whole[4:].view(4, 4)}
    elif change == "half":
        state["first.weight"], state["second.weight"] = torch.ones(2, 4, 4, dtype=torch.half)
    elif change == "transposed":
        state |= {f"{part}.weight": torch.rand(4, 4).t() for part in ("first", "second")}
    expected = {name: tensor.clone() for name, tensor in state.items()}
    expected["mask"] = expected["same_mask"]  # the last of two values for one tensor
    load_weights(model, state, assign=True)
    after = pointers(model.state_dict())
    taken = {name for name in after if after[name] == pointers(state)[name]}
    assert taken == ({"first.weight", "second.weight"} if change == "none" else set())
    assert {name for name in after if after[name] == before[name]} == after.keys() - taken
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name].to(tensor)), name

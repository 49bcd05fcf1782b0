"""Sizes in configs are refused by key and value before memory is asked for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taming import limits
from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.limits import memory_limit, readable_size, readable_time, weights_from_file
from tests.kit.models import GAN_LOSS, ddconfig, first_stage_config, transformer_config

GPT = "model.params.transformer_config.params."


def refusal(config: Any) -> str:
    """What is said about a config, at once."""
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        instantiate_from_config(config, "model", "module")
    assert time.monotonic() - began < 10
    return str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"ch": 32 * 10**9},
        {"ch": 32 * 10**4},
        {"num_res_blocks": 10**9},
        {"z_channels": 10**9},
        {"resolution": 10**12},
        {"in_channels": 0},
        {"out_ch": -1},
        {"dropout": 1.5},
    ],
    ids=str,
)
def test_sizes_of_first_stages(changes: dict[str, Any]) -> None:
    [(name, value)] = changes.items()
    text = refusal(first_stage_config(ddconfig=ddconfig() | changes))
    assert text.startswith(f"model.params.ddconfig.{name} is ")
    assert any(form in text for form in (str(value), f"{value:.4g}"))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_embed": 10**12},
        {"n_embed": 1e12},
        {"n_embed": 0},
        {"embed_dim": 10**10},
        {"embed_dim": -4},
    ],
    ids=str,
)
def test_sizes_of_codebooks(changes: dict[str, Any]) -> None:
    [(name, value)] = changes.items()
    text = refusal(first_stage_config(**changes))
    assert text.startswith(f"model.params.{name} is ")
    assert str(int(value)) in text or f"{value:.4g}" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**12},
        {"block_size": 10**6},
        {"block_size": 10**12},
        {"n_layer": 10**9},
        {"n_embd": 10**6},
        {"n_head": 0},
        {"n_unmasked": -1},
        {"attn_pdrop": 7.0},
    ],
    ids=str,
)
def test_sizes_of_transformers(changes: dict[str, Any]) -> None:
    [(name, value)] = changes.items()
    text = refusal(transformer_config(gpt=changes))
    assert text.startswith(f"{GPT}{name} is ")
    assert any(form in text for form in (str(value), f"{value:.4g}"))


def test_what_is_possible_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "it must be from 1 to 10,000" in refusal(transformer_config(gpt={"n_layer": 10**5}))
    monkeypatch.setattr(limits, "memory_limit", lambda: 2**20)
    text = refusal(transformer_config(gpt={"n_layer": 1000}))
    assert "n_layer is 1000, which is too large: it makes" in text
    assert text.endswith("this machine has 1 MiB of free memory")


@pytest.mark.parametrize("name", ["disc_ndf", "disc_num_layers", "disc_in_channels"])
def test_sizes_of_discriminators(name: str) -> None:
    loss = {**GAN_LOSS, "params": {**GAN_LOSS["params"], name: 10**10}}
    text = refusal(first_stage_config(lossconfig=loss))
    assert text.startswith(f"model.params.lossconfig.params.{name} is 10000000000")


def test_sizes_of_orders() -> None:
    params = {"H": 10**6, "W": 4}
    for name in ("SpiralOut", "Random", "ZCurve"):
        permuter = {"target": f"taming.modules.transformer.permuter.{name}", "params": params}
        text = refusal(transformer_config(permuter_config=permuter))
        assert text.startswith("model.params.permuter_config.params.H is 1000000")


class Many(nn.Module):
    """So many tensors, by functions that are given their shapes in different ways."""

    def __init__(self, side: int, count: int = 1, how: str = "empty") -> None:
        super().__init__()
        for _ in range(count):
            made = {
                "empty": lambda: torch.empty(side, 7),
                "size": lambda: torch.zeros(size=(7, side)),
                "full": lambda: torch.full((side,), 1.0),
                "arange": lambda: torch.arange(3, side + 3),
                "eye": lambda: torch.eye(side),
                "new": lambda: torch.empty(1).new_zeros((side, 2)),
                "repeat": lambda: torch.empty(3).repeat(side, 1),
                "parameter": lambda: nn.Embedding(side, 3).weight,
            }[how]()
        self.side = nn.Parameter(made.detach().float())


HOWS = ["empty", "size", "full", "arange", "eye", "new", "repeat", "parameter"]


@pytest.mark.parametrize("how", HOWS)
def test_other_classes_are_limited_as_well(how: str) -> None:
    config = {"target": "tests.test_limits.Many", "params": {"side": 10**13, "how": how}}
    assert refusal(config).startswith("model.params.side is 1e+13, which is too large")
    config["params"] = {"side": 10, "how": how}
    instantiate_from_config(config, "model", "module")


def test_many_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_limit", lambda: 2**20)
    config = {"target": "tests.test_limits.Many", "params": {"side": 1000, "count": 5000}}
    text = refusal(config)
    assert text.startswith("model.params.count is 5000, which is too large: the model takes more")
    monkeypatch.setattr(limits, "memory_limit", lambda: 2**40)
    monkeypatch.setattr(limits, "_MOST_TENSORS", 1000)
    assert "the model has more than 1,000 tensors" in refusal(config)


class Hungry(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 B")


class Buggy(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        raise RuntimeError("a mistake")


def test_errors_of_the_allocator_and_of_the_models_own_code() -> None:
    text = refusal({"target": "tests.test_limits.Hungry", "params": {"size": 5}})
    assert text.startswith("model.params.size is 5, which is too large: there is not enough memory")
    with pytest.raises(UserError, match=r"Buggy raises RuntimeError: a mistake \(.*, line \d+\)"):
        config = {"target": "tests.test_limits.Buggy", "params": {"size": 5}}
        instantiate_from_config(config, "model", "module")


def test_models_that_are_read_from_files_may_be_larger() -> None:
    free = memory_limit()
    with weights_from_file():
        assert memory_limit() > free
    assert 2**28 < free < 2**41


def test_durations_are_readable() -> None:
    texts = [readable_time(seconds) for seconds in (0.1234, 42, 300, 2 * 3600 + 60, 108000, 777600)]
    assert texts == ["0.12 s", "42 s", "5 min", "2 h 1 min", "30 h 0 min", "9 days"]
    assert [readable_time(seconds) for seconds in (9.96, 75, 90, 5399)] == [
        *("10 s", "75 s", "2 min", "1 h 30 min")
    ]
    sizes = [readable_size(size) for size in (1023, 1024, 2**20 - 1, 2**20, 5 * 2**30, 2**50)]
    assert sizes == ["1023 bytes", "1 KiB", "1023 KiB", "1 MiB", "5 GiB", "1 PiB"]


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_containers_may_have_less_memory(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"/sys/fs/cgroup/{file}": "4096\n", "/proc/meminfo": "MemAvailable: 8 kB\n"}

    def read_text(path: Path) -> str:
        if str(path) not in files:
            raise FileNotFoundError
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert memory_limit() == 4096
    files[f"/sys/fs/cgroup/{file}"] = "max\n"
    assert memory_limit() == 8192


def test_bytes_are_counted_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_limit", lambda: 1000)
    with limits.within_memory("model", {"n": 5}):
        torch.empty(250)  # of 4 bytes each
    for make in (lambda: torch.empty(251), lambda: torch.empty(126, dtype=torch.float64)):
        with pytest.raises(UserError, match=r"it makes a tensor of (251|126) \(100"):
            with limits.within_memory("model", {"n": 5}):
                make()
        with torch.device("meta"), limits.within_memory("model", {"n": 5}):
            make()
    for make in (
        lambda: torch.empty(1).repeat(251, 1),
        lambda: torch.zeros(4).new_ones(251),
        lambda: torch.arange(3, 254),
    ):
        with pytest.raises(UserError, match="it makes a tensor of 251"):
            with limits.within_memory("model", {"n": 5}):
                make()
    with pytest.raises(UserError, match="^model.part.m is 3000, which is too large"):
        with limits.within_memory("model", {"n": 2000}):
            with limits.within_memory("model.part", {"m": 3000}):  # the nearest
                torch.empty(6000)
    limits.check_memory(250, n=250, m=3)
    with pytest.raises(UserError, match="n is 251, which is too large: it makes 1004 bytes"):
        limits.check_memory(251, n=251, m=3)
    limits.check_sizes(n=1, m=2**31 - 1)
    for wrong in (0, 2**31):
        with pytest.raises(UserError, match=f"part.n is {wrong}; it must be from 1 to"):
            limits.check_sizes("part", n=wrong)


def test_memory_where_the_system_does_not_say_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """In some containers; StopIteration would end Lightning's epoch, and nothing would say so."""
    said = limits.peak_memory()
    assert said is not None and said > 2**24
    for text in ("Name:\tpython\nVmRSS:\t1 kB\n", "VmHWM:", ""):
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text: text)
        assert 0.5 < (limits.peak_memory() or 0) / said < 2

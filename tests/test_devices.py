"""Devices, dtypes and autocast."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from taming import devices
from taming.devices import (
    available_cpus,
    choose_device,
    choose_dtype,
    computing_in,
    dtype_name,
    keep_precise,
    without_autocast,
)
from taming.errors import UserError

CPU = torch.device("cpu")


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int = 0, mps: bool = False) -> None:
    """Pretend to be a machine with so many GPUs of NVIDIA's, or one of Apple's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_auto_is_the_fastest_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for gpus, mps, expected in ((0, False, "cpu"), (0, True, "mps"), (2, True, "cuda:0")):
        machine(monkeypatch, gpus, mps)
        assert choose_device() == choose_device("auto") == torch.device(expected)


def test_processes_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus=2)
    for rank, expected in ((0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert choose_device("auto") == torch.device(expected)
        assert choose_device("cuda") == torch.device(expected)
        assert choose_device("cuda:1") == torch.device("cuda:1")  # who names one gets it


def test_the_chosen_gpu_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus=2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name in ("auto", "cuda", "cuda:0", "cpu"):
        choose_device(name)
    assert current == [torch.device(name) for name in ("cuda:1", "cuda:1", "cuda:0")]


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x"])
def test_names_that_are_no_device(name: str) -> None:
    with pytest.raises(UserError, match="--device takes auto, cuda, cuda:1, mps or cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda:2", "mps", "meta"])
def test_devices_that_are_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus=2)
    with pytest.raises(UserError, match=f"no device '{name}' here; use --device auto"):
        choose_device(name)


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype("fp32", CPU) == torch.float32
    assert choose_dtype("bf16", CPU) == torch.bfloat16
    for multiplies, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda answer=multiplies: answer)
        assert choose_dtype("auto", CPU) == expected
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    with pytest.raises(UserError, match="fp32, bf16 or auto, not 'fp16'"):
        choose_dtype("fp16", CPU)


def test_bf16_that_a_gpu_only_emulates_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda **options: bool(asked.append(options))
    )
    assert choose_dtype("auto", torch.device("cuda")) == torch.float32
    assert asked == [{"including_emulation": False}]


def test_names_of_dtypes() -> None:
    assert dtype_name(torch.float32) == "float32" and dtype_name(torch.bfloat16) == "bfloat16"


def product() -> torch.Tensor:
    return torch.ones(2, 2) @ torch.ones(2, 2)


def test_computing_in_a_dtype() -> None:
    with computing_in(torch.bfloat16, CPU):
        assert product().dtype == torch.bfloat16
        with without_autocast(CPU):
            assert product().dtype == torch.float32
    with warnings.catch_warnings(), computing_in(torch.float32, CPU):
        warnings.simplefilter("error")  # of torch, about what autocast cannot do
        assert product().dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    assert product().dtype == torch.float32


def test_parts_that_stay_precise() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm2d(1)), nn.Linear(2, 2))
    keep_precise(net, ["2"])
    x = torch.ones(1, 2, dtype=torch.bfloat16)
    with computing_in(torch.bfloat16, CPU):
        assert net[0](x).dtype == torch.bfloat16 and net[2](x).dtype == torch.float32
        assert net[1](x.expand(3, 1, 2, 2)).dtype == torch.float32


@pytest.mark.parametrize("benchmark", [True, False])
def test_convolutions_are_exact_meanwhile(benchmark: bool) -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    with cudnn.flags(benchmark=benchmark, allow_tf32=True):
        with computing_in(torch.float32, CPU):
            assert not cudnn.allow_tf32 and cudnn.benchmark == benchmark
        assert cudnn.allow_tf32
    assert cudnn.allow_tf32 == before


def test_who_asked_for_deterministic_convolutions_keeps_them() -> None:
    cudnn = torch.backends.cudnn
    for asked in (True, False):
        with cudnn.flags(deterministic=asked), computing_in(torch.float32, CPU):
            assert cudnn.deterministic == asked


def test_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7})
        assert available_cpus() == 3
        monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(devices.os, "cpu_count", lambda: None)
    assert available_cpus() == 1

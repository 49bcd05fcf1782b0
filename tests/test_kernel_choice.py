from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from taming import kernel_choice
from taming.errors import UserError
from taming.kernel_choice import ONEDNN, PACKED, TORCH, choices_file, fastest, machine

Calls = list[str]


class Clock:
    """In place of the module `time`: nothing takes time but what is said to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-9
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


time = Clock()


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel_choice, "choices", {})
    monkeypatch.setattr(kernel_choice, "time", time)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def choose(seconds: dict[str, float], calls: Calls, task: str = "a task") -> str:
    """Among ways that take so many seconds; below 0 they raise."""

    def way(name: str) -> None:
        calls.append(name)
        if seconds[name] < 0:
            raise RuntimeError("no such operator")
        time.sleep(seconds[name])

    ways = {name: functools.partial(way, name) for name in seconds}
    return fastest(task, tuple(seconds), lambda: ways)


def test_the_fastest_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Calls = []
    seconds = {TORCH: 0.004, ONEDNN: 0.002, PACKED: 0.0}
    assert choose(seconds, calls) == PACKED
    assert set(calls) == set(seconds)
    kernel_choice.choices.clear()  # as in another process
    assert choose({TORCH: 0.0, ONEDNN: 0.1, PACKED: 0.1}, calls := []) == PACKED
    assert not calls
    assert json.loads(choices_file().read_text()) == {f"{machine()}, a task": PACKED}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    kernel_choice.choices.clear()
    assert choose({TORCH: 0.0, PACKED: 0.004}, calls) == TORCH
    assert calls and kernel_choice.choices == {"a task": TORCH}


def test_a_little_faster_is_not_enough() -> None:
    assert choose({TORCH: 0.0100, ONEDNN: 0.0096}, []) == TORCH


def test_what_this_build_cannot_do_is_not_chosen() -> None:
    assert choose({TORCH: 0.002, ONEDNN: -1, PACKED: 0.0}, []) == PACKED
    assert choose({TORCH: 0.002, ONEDNN: -1, PACKED: -1}, [], "another") == TORCH


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', '{"KEY": 3}', '{"KEY": "gone"}'])
def test_damaged_files_are_replaced(content: str) -> None:
    choices_file().parent.mkdir()
    choices_file().write_text(content.replace("KEY", f"{machine()}, a task"))
    assert choose({TORCH: 0.002, ONEDNN: 0.0}, []) == ONEDNN
    assert json.loads(choices_file().read_text())[f"{machine()}, a task"] == ONEDNN


def test_choices_of_other_machines_stay() -> None:
    choices_file().parent.mkdir()
    choices_file().write_text('{"other": "packed"}')
    choose({TORCH: 0.0}, [])
    assert json.loads(choices_file().read_text())["other"] == PACKED


def test_what_cannot_be_kept_is_not_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A measurement of the next run could choose otherwise."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose({TORCH: 0.002, ONEDNN: 0.0}, []) == TORCH


def test_the_first_of_two_processes_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    choices_file().parent.mkdir()
    theirs = json.dumps({f"{machine()}, a task": ONEDNN})

    def meanwhile() -> None:
        choices_file().write_text(theirs)

    ways = {TORCH: meanwhile, ONEDNN: lambda: time.sleep(0.002)}
    assert fastest("a task", (TORCH, ONEDNN), lambda: ways) == ONEDNN


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMING_KERNEL", "onednn")
    calls: Calls = []
    assert choose({TORCH: 0.0, ONEDNN: 0.1}, calls) == ONEDNN
    assert not calls and not choices_file().exists()
    monkeypatch.setenv("TAMING_KERNEL", "mkl")
    with pytest.raises(UserError, match="takes torch, onednn, packed, triton, not 'mkl'"):
        choose({TORCH: 0.0}, [], "another")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_ways_with_a_backward_pass_are_measured_in_any_mode(mode: Any) -> None:
    def ways() -> dict[str, Any]:
        x = torch.ones(3, requires_grad=True)
        return {TORCH: lambda: time.sleep(0.004), ONEDNN: lambda: x.square().sum().backward()}

    with mode():
        assert fastest("a task", (TORCH, ONEDNN), ways) == ONEDNN

"""The checksum in checkpoints: any damage is recognized, and the newest whole one is used."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from taming.checkpoint import checksum, find_run, read_checkpoint, save_atomic
from taming.checkpoint.checksum import verify
from taming.errors import UserError


def write_run(folder: Path, steps: tuple[int, ...]) -> Path:
    """A run with a checkpoint of each step, of which `last.ckpt` is the last."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "2021-project.yaml").write_text("{}")
    for step in steps:
        state = {"weight": torch.full((300,), float(step)), "bias": torch.randn(70)}
        content = {"state_dict": state, "global_step": step, "optimizer_states": [{"a": [1, 2]}]}
        save_atomic(
            content,
            folder / f"checkpoints/epoch={step:06}.ckpt",
            also=[folder / "checkpoints/last.ckpt"],
        )
    return folder / "checkpoints" / "last.ckpt"


def damaged(data: bytes, seed: int) -> bytes:
    """One bit, a block, zeros, a cut or an addition, anywhere."""
    rng = random.Random(seed)
    kind, at = seed % 6, rng.randrange(len(data))
    if seed % 12 < 3:  # as often in the last few bytes, where the checksum is
        at = len(data) - 1 - rng.randrange(60)
    if kind < 2:
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 2:
        return data[:at] + rng.randbytes(min(512, len(data) - at)) + data[at + 512 :]
    if kind == 3:
        return data[:at] + bytes(len(data) - at)
    return data[:at] if kind == 4 else data + rng.randbytes(1 + at % 1000)


def test_a_thousand_damages_are_recognized(tmp_path: Path) -> None:
    path = write_run(tmp_path, (3,))
    data = path.read_bytes()
    os.remove(path)
    for seed in range(1000):
        content = damaged(data, seed)
        path.write_bytes(content)
        if content == data:  # there were zeros already
            continue
        with pytest.raises(UserError, match=r"last.ckpt (is|holds) ") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value), seed


def test_every_cut_and_bit_of_the_end_is_recognized(tmp_path: Path) -> None:
    path = write_run(tmp_path, (3,))
    data = path.read_bytes()
    os.remove(path)
    variants = [data[:-cut] for cut in range(1, 60)]
    for place in range(1, 60):
        for bit in range(8):
            variants.append(data[:-place] + bytes([data[-place] ^ 1 << bit]) + data[-place + 1 :])
    variants[59] = data[:-1] + bytes([data[-1] ^ 1])  # the slice above wraps around
    for variant in (v for v in variants if len(v) <= len(data)):
        path.write_bytes(variant)
        with pytest.raises(UserError, match=r"last.ckpt (is|holds) "):
            read_checkpoint(path)


def test_torch_reads_files_with_a_checksum_and_we_read_those_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"state_dict": {"weight": torch.randn(7)}, "global_step": 2}
    save_atomic(content, tmp_path / "ours.ckpt")
    for mapped in (True, False):
        read = torch.load(tmp_path / "ours.ckpt", mmap=mapped)
        assert torch.equal(read["state_dict"]["weight"], content["state_dict"]["weight"])
    torch.save(content, tmp_path / "plain.ckpt")
    verify(tmp_path / "plain.ckpt")
    monkeypatch.setattr(checksum, "_PART", 100)
    verify(tmp_path / "ours.ckpt")
    assert read_checkpoint(tmp_path / "plain.ckpt")["global_step"] == 2


def test_a_file_is_summed_once_for_each_version(tmp_path: Path) -> None:
    path = write_run(tmp_path, (3,))
    read_checkpoint(path)
    data = path.read_bytes()
    path.write_bytes(data[:900] + b"x" + data[901:])
    with pytest.raises(UserError, match="checksum in it disagree"):
        read_checkpoint(path)


def test_a_file_of_two_names_is_summed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As resumed runs link the one that they go on from."""
    path, other = write_run(tmp_path, (3,)), tmp_path / "other.ckpt"
    read_checkpoint(path)
    os.link(path, other)
    monkeypatch.setattr(checksum, "verify", lambda path: pytest.fail("summed again"))
    assert read_checkpoint(other)["global_step"] == 3


@pytest.mark.parametrize("both", [False, True])
def test_the_newest_whole_one_is_used(
    tmp_path: Path, both: bool, caplog: pytest.LogCaptureFixture
) -> None:
    last = write_run(tmp_path, (3, 10, 20))
    newest = tmp_path / "checkpoints" / "epoch=000020.ckpt"
    data = last.read_bytes()
    for path in (last, newest) if both else (last,):
        os.remove(path)
        path.write_bytes(data[:-400] + b"x" + data[-399:])
    with caplog.at_level(logging.WARNING):
        run = find_run(tmp_path)
        find_run(tmp_path)
    step = 10 if both else 20
    assert run.checkpoint.name == f"epoch={step:06}.ckpt"
    [message] = caplog.messages
    assert f"last.ckpt is damaged: using {run.checkpoint} (step {step})" in message
    with pytest.raises(UserError, match="last.ckpt is damaged"):  # as it was asked for
        read_checkpoint(find_run(last).checkpoint)


def test_any_first_byte_is_damage(tmp_path: Path) -> None:
    """Also the one with which files of torch before 1.6 begin, which have no checksum."""
    last = write_run(tmp_path, (3, 10))
    data = last.read_bytes()
    os.remove(last)
    last.write_bytes(b"\x80" + data[1:])
    with pytest.raises(UserError, match="last.ckpt is damaged"):
        verify(last)
    assert find_run(tmp_path).checkpoint.name == "epoch=000010.ckpt"


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("gone.ckpt")])
def test_what_is_no_file_is_passed_over(tmp_path: Path, make: Callable[[Path], None]) -> None:
    last = write_run(tmp_path, (3, 10))
    os.remove(last)
    make(last)
    assert find_run(tmp_path).checkpoint.name == "epoch=000010.ckpt"


@pytest.mark.parametrize("content", [b"", bytes(5000), b"PK", b"hello"])
def test_what_a_power_cut_leaves_is_passed_over(tmp_path: Path, content: bytes) -> None:
    last = write_run(tmp_path, (3, 10))
    os.remove(last)
    last.write_bytes(content)
    assert find_run(tmp_path).checkpoint.name == "epoch=000010.ckpt"


def test_damage_everywhere_is_a_sentence(tmp_path: Path) -> None:
    last = write_run(tmp_path, (3, 10))
    for path in last.parent.iterdir():
        os.truncate(path, 1000)
    with pytest.raises(UserError, match="last.ckpt is cut short"):
        find_run(tmp_path)


def test_a_file_that_was_written_after_last_is_used(tmp_path: Path) -> None:
    """A process was killed between the two names of one write."""
    last = write_run(tmp_path, (3, 10))
    os.replace(last.parent / "epoch=000010.ckpt", tmp_path / "kept.ckpt")
    os.replace(last.parent / "epoch=000003.ckpt", last)
    os.utime(last, (1, 1))
    os.replace(tmp_path / "kept.ckpt", last.parent / "epoch=000010.ckpt")
    assert find_run(tmp_path).checkpoint.name == "epoch=000010.ckpt"
    os.utime(last)  # gone on with from an older file since then
    assert find_run(tmp_path).checkpoint == last
    newest = last.parent / "epoch=000003.ckpt"
    newest.write_bytes(last.read_bytes())  # of the same step, where there are no links
    os.utime(last, (1, 1))
    os.remove(last.parent / "epoch=000010.ckpt")
    assert find_run(tmp_path).checkpoint == last


class Calling:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_hostile_files_are_refused_not_passed_over(tmp_path: Path) -> None:
    last = write_run(tmp_path, (3,))
    os.remove(last)
    torch.save({"state_dict": {}, "run": Calling()}, last)
    with pytest.raises(UserError, match="refused as unsafe"):
        find_run(tmp_path)

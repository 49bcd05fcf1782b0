"""Models that were pickled whole, by any torch: their weights are read, their code is not run."""

from __future__ import annotations

import functools
import os
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taming.checkpoint.pickled_modules import read_pickled_modules
from taming.errors import UserError
from tests.support import Malicious

BOTH = pytest.mark.parametrize("zipped", [True, False])
PACKAGE = ("foreign_net.",)


class Block(nn.Module):
    """What modules of others hold: parts in parts, and plain values of all kinds as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), relu=nn.ReLU()))
        self.w = nn.Parameter(torch.arange(6.0).reshape(2, 3).t(), requires_grad=False)
        self.h = nn.Parameter(torch.arange(4).half())
        self.register_buffer("count", torch.arange(8)[2:6])  # a part of its storage
        self.register_buffer("nothing", None)
        self.register_buffer("empty", torch.empty(0))
        self.device, self.kind, self.sizes = torch.device("cpu"), torch.float16, {1, 2}
        self.make, self.range, self.raw = functools.partial(nn.Linear, 3), range(3), b"ab\xff"

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("code of the file's classes was run")


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> Iterator[Block]:
    module = types.ModuleType("foreign_net")
    module.Block = Block  # type: ignore[attr-defined]
    monkeypatch.setattr(Block, "__module__", "foreign_net")
    sys.modules["foreign_net"] = module
    torch.manual_seed(0)
    yield Block()
    sys.modules.pop("foreign_net", None)


def save(content: Any, path: Path, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    sys.modules.pop("foreign_net", None)  # reading must not need the package
    return path


@BOTH
def test_they_become_tensors(tmp_path: Path, block: Block, zipped: bool) -> None:
    path = save(block, tmp_path / "block.pkl", zipped)
    state = read_pickled_modules(path, PACKAGE)
    assert state.keys() == block.state_dict().keys()
    for name, value in block.state_dict().items():
        assert torch.equal(state[name], value) and state[name].dtype == value.dtype
        assert not state[name].requires_grad
    with pytest.raises(UserError, match=r"block.pkl would run 'foreign_net\.Block'"):
        read_pickled_modules(path, ("another.",))


@BOTH
def test_weights_alone_are_read_too(tmp_path: Path, zipped: bool) -> None:
    path = save({"weight": torch.arange(3.0)}, tmp_path / "a.pkl", zipped)
    assert torch.equal(read_pickled_modules(path, ())["weight"], torch.arange(3.0))


@BOTH
def test_code_in_them_is_refused_by_name(tmp_path: Path, block: Block, zipped: bool) -> None:
    command = f"touch {tmp_path / 'ran'}"
    for name, call in {
        f"{os.system.__module__}.system": (os.system, command),
        "builtins.eval": (eval, f"__import__('os').system('{command}')"),
        "builtins.getattr": (getattr, "a", "upper"),
        "torch.hub.load": (torch.hub.load, "a/b", "c"),
    }.items():
        block.make = Malicious(*call)  # type: ignore[assignment]
        sys.modules["foreign_net"] = types.ModuleType("foreign_net")
        sys.modules["foreign_net"].Block = Block  # type: ignore[attr-defined]
        path = save(block, tmp_path / "evil.pkl", zipped)
        told = name.replace("builtins", "(builtins|__builtin__)")
        with pytest.raises(UserError, match=f"evil.pkl would run '{told}'.*refused as unsafe"):
            read_pickled_modules(path, PACKAGE)
    assert not (tmp_path / "ran").exists()


@BOTH
def test_cut_anywhere_they_are_recognized(tmp_path: Path, block: Block, zipped: bool) -> None:
    data = save(block, tmp_path / "block.pkl", zipped).read_bytes()
    cut = tmp_path / "cut.pkl"
    for tenth in range(10):
        cut.write_bytes(data[: max(4, len(data) * tenth // 10)])
        with pytest.raises(UserError, match="cut.pkl is .*fetch or save it again") as caught:
            read_pickled_modules(cut, PACKAGE)
        assert "\n" not in str(caught.value)


def test_a_module_within_itself_is_refused(tmp_path: Path, block: Block) -> None:
    block._modules["again"] = block
    path = save(block, tmp_path / "block.pkl", False)
    with pytest.raises(UserError, match="block.pkl is no checkpoint"):
        read_pickled_modules(path, PACKAGE)

"""Objects of foreign classes in pickles, whole models among them: read as data, never run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import datetime
import enum
import fractions
import functools
import io
import pickle
import sys
import types
import uuid
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from taming.checkpoint import inert, read_checkpoint, read_content
from taming.checkpoint.stand_ins import RUNS_CODE, Inert
from taming.errors import UserError

BOTH = pytest.mark.parametrize("zipped", [True, False])


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
@pytest.mark.parametrize("place", ["", "model", "ema"])
def test_whole_models_become_tensors(
    tmp_path: Path, block: Block, zipped: bool, place: str
) -> None:
    expected = block.state_dict()
    path = save({place: block, "epoch": 1} if place else block, tmp_path / "block.pkl", zipped)
    state = read_checkpoint(path)["state_dict"]
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value) and state[name].dtype == value.dtype
        assert not state[name].requires_grad


@BOTH
def test_cut_anywhere_they_are_recognized(tmp_path: Path, block: Block, zipped: bool) -> None:
    data = save(block, tmp_path / "block.pkl", zipped).read_bytes()
    cut = tmp_path / "cut.pkl"
    for tenth in range(10):
        cut.write_bytes(data[: max(4, len(data) * tenth // 10)])
        with pytest.raises(UserError, match="cut.pkl is .*fetch or save it again") as caught:
            read_checkpoint(cut)
        assert "\n" not in str(caught.value)


def test_a_module_within_itself_comes_to_an_end(tmp_path: Path, block: Block) -> None:
    block._modules["again"] = block
    path = save(block, tmp_path / "block.pkl", False)
    assert {"w", "again.w"} <= read_checkpoint(path)["state_dict"].keys()


# ---------------------------------------------------------------------- other classes


class Config(dict[str, Any]):
    """As EasyDict and its kin, which also have attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        assert "foreign_net" in sys.modules, "code of the file's classes was run"
        super().__setitem__(name, value)


class Words(list[str]):
    pass


class Point(NamedTuple):
    x: int
    y: torch.Tensor


class Mode(enum.Enum):
    TRAIN = "train"


class Level(enum.IntFlag):
    LOW = 1


@dataclasses.dataclass
class Settings:
    rate: float
    nested: Any = None

    def method(self) -> None: ...


class Reduced:
    """Is rebuilt by a function of its package, with state, entries and items."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return make, (1, "two"), {"attribute": 3}, iter(["four"]), iter([("five", 6)])


def make(*args: Any) -> Any:
    raise AssertionError("code of the file's package was run")


FOREIGN = (Config, Words, Point, Mode, Level, Settings, Reduced, make)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = types.ModuleType("foreign_net")
    for each in FOREIGN:
        monkeypatch.setattr(each, "__module__", "foreign_net")
        vars(module)[each.__name__] = each
    sys.modules["foreign_net"] = module
    yield
    sys.modules.pop("foreign_net", None)


def objects() -> dict[str, Any]:
    config = Config(rate=0.1, layers=Config(n=3))
    return {
        "config": config,
        "words": Words(["a", "b"]),
        "point": Point(1, torch.ones(2)),
        "mode": Mode.TRAIN,
        "level": Level.LOW,
        "settings": Settings(0.5, {"deep": [torch.zeros(1)]}),
        "reduced": Reduced(),
        "namespace": types.SimpleNamespace(a=1),
        "arguments": argparse.Namespace(b=2),
        "path": Path("runs") / "x",
        "windows": PureWindowsPath("c:/a"),
        "omega": OmegaConf.create({"a": [1, {"b": 2}]}),
        "function": make,
        "partial": functools.partial(make, 3, b=4),
        "lambda_like": Settings.method,
        "method": Settings(1.0).method,
        "time": datetime.datetime(2020, 1, 2),
        "fraction": fractions.Fraction(1, 3),
        "id": uuid.UUID(int=5),
        "array": np.arange(3.0),
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, a=[1]),
        "deque": collections.deque([1, 2]),
        "raw": b"ab\xff",
        "bytes": bytearray(b"xy"),
        "number": np.float64(1.5),
        "complex": 1j,
        "frozen": frozenset({1}),
        "slice": slice(1, 2),
        "range": range(3),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "exception": ValueError("x"),
        "parameter": nn.Parameter(torch.ones(3)),
        "sets": {Mode.TRAIN: 1, ("a", 1): 2},
        "random": torch.Generator,
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@BOTH
def test_objects_of_all_kinds_are_data(
    tmp_path: Path, foreign: None, zipped: bool, protocol: int
) -> None:
    content = {"state_dict": {"weight": torch.arange(6.0).view(2, 3)}, **objects()}
    path = tmp_path / "x.ckpt"
    options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    torch.save(content, path, **options)
    sys.modules.pop("foreign_net")
    read = read_content(path)
    assert torch.equal(read["state_dict"]["weight"], content["state_dict"]["weight"])
    assert read.keys() == content.keys()
    assert read["config"]["rate"] == 0.1 and read["config"]["layers"]["n"] == 3
    assert read["words"].sequence == ["a", "b"]
    assert read["point"].args[0] == 1 and torch.equal(read["point"].args[1], torch.ones(2))
    assert read["settings"].state["rate"] == 0.5
    assert torch.equal(read["settings"].state["nested"]["deep"][0], torch.zeros(1))
    reduced = read["reduced"]
    assert reduced.args == (1, "two") and reduced.state == {"attribute": 3}
    assert reduced.sequence == ["four"] and dict(reduced) == {"five": 6}
    assert read["namespace"].state == {"a": 1} and read["arguments"].state == {"b": 2}
    assert read["path"] == "runs/x" and isinstance(read["windows"], str)
    for name in ("mode", "omega", "partial", "time", "array", "exception", "id"):
        assert isinstance(read[name], Inert), name
    assert read["counter"] == {"a": 2, "b": 1} and read["default"] == {"a": [1]}
    same = ("raw", "number", "complex", "frozen", "dtype", "size", "parameter")
    for name in same:
        equal = read[name] == content[name]
        assert equal.all() if isinstance(equal, torch.Tensor) else equal, name
    assert read["bytes"] == b"xy" and read["device"] == "cpu"


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_without_torch_are_read(tmp_path: Path, foreign: None, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    content = {"state_dict": {"a.weight": torch.arange(3.0)}, "config": Config(rate=0.1)}
    path.write_bytes(pickle.dumps(content, protocol))
    sys.modules.pop("foreign_net")
    read = read_checkpoint(path)
    assert torch.equal(read["state_dict"]["a.weight"], torch.arange(3.0))
    assert read["config"]["rate"] == 0.1


def test_what_a_pickle_sets_on_stand_ins_stays_in_its_reading(tmp_path: Path) -> None:
    """`BUILD` sets attributes of whatever is on the stack, classes among it."""
    evil = b"\x80\x02cforeign\nName\nN}X\x03\0\0\0popcforeign\nName\ns\x86b."
    path = tmp_path / "x.pkl"
    for name in (b"foreign\nName", b"torch._utils\n_rebuild_parameter", b"builtins\ngetattr"):
        path.write_bytes(evil.replace(b"foreign\nName", name))
        with contextlib.suppress(UserError):
            read_content(path)
    assert Inert.pop is dict.pop
    again = tmp_path / "y.ckpt"
    torch.save({"state_dict": {"w": nn.Parameter(torch.ones(1))}}, again)
    assert torch.equal(read_checkpoint(again)["state_dict"]["w"], torch.ones(1))


def test_pickles_take_no_more_memory_than_they_have_objects(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(UserError, match="it says that it remembers 2147483647 objects"):
        read_checkpoint(path)


DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
DTYPES += (torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128)
DTYPES += (torch.uint16, torch.uint64, torch.float8_e4m3fn)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_all_types(tmp_path: Path, zipped: bool, dtype: torch.dtype) -> None:
    tensor = torch.arange(6.0).to(dtype)
    read = read_content(save({"a": tensor[2:]}, tmp_path / "x.pt", zipped))["a"]
    assert read.dtype == dtype and read.tolist() == tensor[2:].tolist()


class Kept:
    """Stands for a storage, of which pickles of torch's hold a reference."""


class Rebuilt:
    def __reduce__(self) -> Any:
        arguments = (Kept(), 1, (2,), (1,), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class OldestPickler(pickle.Pickler):
    """Writes references to a part of a storage, as torch did before 0.4."""

    def persistent_id(self, obj: object) -> Any:
        part = ("1", 2, 3)  # its own key, start and length
        return ("storage", torch.FloatStorage, "0", "cpu", 10, part) if type(obj) is Kept else None


def test_parts_of_storages_in_the_oldest_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for stored in (10, 9):
        with path.open("wb") as file:
            for head in (inert._MAGIC, 1001, {"little_endian": True}):
                pickle.dump(head, file, protocol=2)
            OldestPickler(file, protocol=2).dump({"a": Rebuilt()})
            pickle.dump(["0"], file, protocol=2)
            file.write(stored.to_bytes(8, "little") + np.arange(10, dtype="<f4").tobytes())
        if stored == 10:
            assert read_content(path)["a"].tolist() == [3, 4]
        else:  # another length than the content says
            with pytest.raises(UserError, match="x.pt is .*fetch or save it again"):
                read_content(path)


def test_tensors_end_where_their_records_do(tmp_path: Path) -> None:
    whole = save({"a": torch.arange(8.0), "b": torch.zeros(99)}, tmp_path / "a.pt", True)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(tmp_path / "b.pt", "w") as other:
        for name in archive.namelist():
            data = archive.read(name)
            data = data.replace(b"K\x08", b"K\x09") if name.endswith("data.pkl") else data
            other.writestr(name, data)
    with pytest.raises(UserError, match="it ends within a tensor"):
        read_content(tmp_path / "b.pt")


def test_programs_of_torchscript_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path)
    with pytest.raises(UserError, match="x.pt is a TorchScript program, not weights"):
        read_checkpoint(path)


def test_parts_of_a_model_that_are_one_are_there_by_both_names(tmp_path: Path) -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared))
    torch.save(model, tmp_path / "a.pt")
    state = read_checkpoint(tmp_path / "a.pt")["state_dict"]
    assert state.keys() == model.state_dict().keys() and len(state) == 4


@pytest.mark.parametrize("content", [b"(lp100000\n.", b"\x80\x02]r\xa0\x86\x01\0."])
def test_numbers_of_objects_that_cannot_be(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError, match="it remembers 100000 objects"):
        inert.read_stream(tmp_path, io.BytesIO(content))


def test_archives_hold_no_more_than_they_are(tmp_path: Path) -> None:
    """Not even a little: torch compresses nothing."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps(1, protocol=2))
        archive.writestr("a/noise", np.random.RandomState(0).bytes(2000) + bytes(1500))
    with pytest.raises(ValueError, match="it says that it holds 3,5"):
        inert.read_zip(tmp_path / "a.pt")


def test_names_that_run_code() -> None:
    for name in (
        *("builtins.eval", "builtins.exec", "builtins.execfile", "builtins.open"),
        *("os.system", "posix.system", "nt.system", "subprocess.Popen", "runpy.run_path"),
        *("torch.hub.load", "torch.jit.load", "torch.utils.cpp_extension.load"),
    ):
        assert RUNS_CODE.fullmatch(name), name
    for name in ("builtins.set", "osmium.x", "torch.nn.Linear", "collections.OrderedDict"):
        assert not RUNS_CODE.fullmatch(name), name

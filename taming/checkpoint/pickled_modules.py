"""The weights of models that were pickled whole, without running their classes or any code."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from taming.checkpoint import formats
from taming.checkpoint.formats import SAFE, Inert, stand_in

# Classes of which whole models are made, beside those of their own package.
_PARTS = ("torch.nn.", "functools.partial", "attr.", "builtins.range")
_MAGIC = 0x1950A86A20F9469CFC6C  # the beginning of torch's files before 1.6, pickled


def read_pickled_modules(path: str | Path, packages: tuple[str, ...]) -> dict[str, Tensor]:
    """The `state_dict` of a model that was pickled whole, of classes in torch.nn and `packages`.

    The classes are not run: their modules and parameters are read as data, from files of torch of
    any age. A file with a `state_dict` alone is read too.

    Raises:
        UserError: for anything else, and for files that name other classes or functions.
    """

    def read(file: Path) -> dict[str, Tensor] | None:
        content = _content(file, packages + _PARTS)
        return None if isinstance(content, Mapping) else dict(_tensors_of(content, ""))

    state = formats.explained(Path(path), read)
    return formats.read_checkpoint(path)["state_dict"] if state is None else state


def _tensors_of(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    state = (module.state if isinstance(module, Inert) else None) or {}
    for kind in ("_parameters", "_buffers"):
        for name, tensor in state.get(kind, {}).items():
            if isinstance(tensor, Tensor):
                yield prefix + name, tensor.detach()
    for name, child in state.get("_modules", {}).items():
        yield from _tensors_of(child, f"{prefix}{name}.")


def _content(path: Path, packages: tuple[str, ...]) -> Any:
    with path.open("rb") as file:
        if file.read(2) == b"PK":  # a zip
            return formats.load_torch(path, packages)
        file.seek(0)
        return _read_old(path, file, packages)


def _read_old(path: Path, file: IO[bytes], packages: tuple[str, ...]) -> Any:
    """The content of a file before torch 1.6.

    Four pickles (magic number, protocol, system, content), the keys of storages, and their data.
    torch's own safe reader refuses whole models of that time, whose classes' source code is stored.
    """
    if _Reader(path, file, packages).load() != _MAGIC:
        raise pickle.UnpicklingError("not a file of torch")
    for _ in range(2):
        _Reader(path, file, packages).load()
    reader = _Reader(path, file, packages)
    content = reader.load()
    for key in _Reader(path, file, packages).load():
        _fill(reader.storages[key], file)
    return content


def _fill(storage: Tensor, file: IO[bytes]) -> None:
    count = int.from_bytes(file.read(8), "little")
    data = bytearray(file.read(storage.nbytes))
    if count != storage.numel() or len(data) != storage.nbytes:
        raise EOFError("it ends within a tensor")
    if count:
        storage.copy_(torch.frombuffer(data, dtype=storage.dtype))


class _Reader(pickle.Unpickler):
    """Makes tensors, plain data and `Inert` objects; never calls what a file names."""

    def __init__(self, path: Path, file: IO[bytes], packages: tuple[str, ...]) -> None:
        super().__init__(file, encoding="utf-8")
        self.path, self.packages = path, packages
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        full = formats.todays_name(module, name)
        if full in _MADE:
            return _MADE[full]
        return Inert if full in SAFE else stand_in(self.path, full, self.packages) or Inert

    def persistent_load(self, pid: Any) -> Any:
        kind, *details = pid
        if kind == "module":  # (class, its source file, its source)
            return details[0]
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown reference to a '{kind}'")
        dtype, key, _, count, view = details  # the third is the device
        if view is not None:
            raise pickle.UnpicklingError("storages within storages")
        if key not in self.storages:
            self.storages[key] = torch.empty(count, dtype=dtype)
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


_DTYPES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64}
_DTYPES |= {"HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16}
_DTYPES |= {"LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16}
_DTYPES |= {"CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool}
_MADE: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}

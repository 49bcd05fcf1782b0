"""Pickles, torch's among them, as plain data: tensors and values, without running what they name.

A pickle is a program that may call what it names. Here every name stands for an inert class,
but for those of plain data and tensors (see `taming.checkpoint.stand_ins`). A file that would call
what runs code by itself is refused: nobody saves that with weights.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from taming.checkpoint.stand_ins import (
    FUNCTIONS,
    PYTHON_2,
    RUNS_CODE,
    TYPES,
    Refused,
    as_bytes,
    inert_class,
)
from taming.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # the beginning of torch's files before 1.6, pickled


# ---------------------------------------------------------------------- files


def read_zip(path: Path, program: bool = False) -> Any:
    """The content of a file of torch since 1.6, its tensors mapped from it.

    Of a TorchScript `program`, which is refused otherwise, that are its objects, and none runs.

    Raises:
        ValueError: if it is no such file, or claims more than it holds.
    """
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: entry for entry in archive.infolist()}
        _check_claims(path, list(records.values()))
        pickles = [name for name in records if name.endswith("data.pkl")]
        if not pickles:
            raise ValueError("no data.pkl in it")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in records and not program:
            raise UserError(
                f"{path} is a TorchScript program, not weights; save its state_dict() instead"
            )
        data = archive.read(pickles[0])
    mapped = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)

    def stored(key: str, dtype: torch.dtype, count: int) -> Tensor:
        entry = records[f"{root}data/{key}"]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("a tensor is compressed")
        start, nbytes = _start_of(file, entry), count * dtype.itemsize
        if not 0 <= nbytes <= entry.file_size or start + nbytes > len(mapped):
            raise EOFError("it ends within a tensor")
        if not nbytes:
            return torch.empty(0, dtype=dtype)
        return torch.empty(0, dtype=dtype).set_(mapped[start : start + nbytes])

    with path.open("rb") as file:
        return Reader(path, io.BytesIO(data), stored).load()


def _check_claims(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """Torch writes tensors as they are; compressed ones could be any number of zeros."""
    claimed = sum(entry.file_size for entry in records)
    if claimed > path.stat().st_size:
        raise ValueError(f"it says that it holds {claimed:,} bytes")


def _start_of(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where a record's content begins: behind a header of 30 bytes, its name, and padding."""
    file.seek(entry.header_offset + 26)
    lengths = file.read(4)
    name, padding = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
    return entry.header_offset + 30 + name + padding


def read_stream(path: Path, file: IO[bytes]) -> Any:
    """The content of a file of torch before 1.6, or of any other pickle.

    The former are four pickles (magic number, protocol, system, content), the keys of storages, and
    their data, which is read into memory.
    """
    storages: dict[str, Tensor] = {}

    def stored(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in storages:
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key]

    first = Reader(path, file, stored).load()
    if not isinstance(first, int) or first != _MAGIC:
        return first
    for _ in range(2):
        Reader(path, file, stored).load()
    content = Reader(path, file, stored).load()
    for key in Reader(path, file, stored).load():
        _fill(storages[key], file)
    return content


def _fill(storage: Tensor, file: IO[bytes]) -> None:
    count = int.from_bytes(file.read(8), "little")
    data = bytearray(file.read(storage.nbytes))
    if count != storage.numel() or len(data) != storage.nbytes:
        raise EOFError("it ends within a tensor")
    if count:
        storage.copy_(torch.frombuffer(data, dtype=storage.dtype))


# ---------------------------------------------------------------------- one pickle


Stored = Callable[[str, torch.dtype, int], Tensor]  # (key, dtype, count) -> that storage, flat


class Reader(pickle.Unpickler):
    """Makes tensors, plain data and `Inert` objects; never calls what a file names."""

    def __init__(self, path: Path, file: IO[bytes], stored: Stored) -> None:
        encoding, errors = PYTHON_2
        super().__init__(file, encoding=encoding, errors=errors)
        self.path, self.file, self.stored = path, file, stored
        self.names: dict[str, Any] = {}

    def load(self) -> Any:
        start = self.file.tell()
        _check_memo(self.file)
        self.file.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        full = _todays_name(module, name)
        if full not in self.names:
            self.names[full] = self._stand_in(full)
        return self.names[full]

    def _stand_in(self, name: str) -> Any:
        if RUNS_CODE.fullmatch(name):
            return Refused(str(self.path), name)
        if name == "torch.storage._load_from_bytes":  # tensors in other pickles than torch's own
            return partial(_read_bytes, self.path)
        if name in TYPES:
            return TYPES[name]
        if name in FUNCTIONS:
            return partial(FUNCTIONS[name])  # a new object, see `inert_class`
        return inert_class()

    def persistent_load(self, pid: Any) -> Any:
        kind, *details = pid
        if kind == "module":  # (class, its source file, its source)
            return details[0]
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown reference to a '{kind}'")
        dtype, key, _, count, *view = details  # the third is the device
        if not isinstance(dtype, torch.dtype):
            raise UserError(
                f"{self.path} holds tensors of a type that is not read here; save its weights as "
                "float32, float16 or bfloat16"
            )
        storage = self.stored(key, dtype, count)
        if view and view[0] is not None:  # a part of it, in the oldest files
            _, start, length = view[0]
            return storage[start : start + length]
        return storage


_OPERATIONS: dict[bytes, Any] = {each.code.encode("latin-1"): each for each in pickletools.opcodes}
_LINES = {"STRING": 1, "UNICODE": 1, "PERSID": 1, "GLOBAL": 2, "INST": 2}


def _check_memo(file: IO[bytes]) -> None:
    """Refuse numbers of remembered objects of which there cannot be as many.

    The unpickler makes room for all numbers up to one at once, which could be any amount of memory.
    """
    for name, argument, position in _operations(file):
        if name in ("PUT", "LONG_BINPUT") and int(argument) > position + 256:
            raise pickle.UnpicklingError(f"it says that it remembers {argument} objects")


def _operations(file: IO[bytes]) -> Iterator[tuple[str, Any, int]]:
    """The name, argument and place of each operation of a pickle; None for texts in lines, which
    may have any encoding (`pickletools.genops` takes them for ASCII)."""
    name = ""
    while name != "STOP":
        position, code = file.tell(), file.read(1)
        operation = _OPERATIONS.get(code)
        if operation is None:
            raise pickle.UnpicklingError(f"there is no operation {code!r}" if code else "it ends")
        name, lines = operation.name, _LINES.get(operation.name, 0)
        for _ in range(lines):
            file.readline()
        reads = operation.arg is not None and not lines
        yield name, operation.arg.reader(file) if reads else None, position


def _todays_name(module: str, name: str) -> str:
    """The full name of a pickled class or function; protocol 2 uses Python 2's names for some."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _read_bytes(path: Path, data: Any) -> Any:
    return read_stream(path, io.BytesIO(as_bytes(data)))

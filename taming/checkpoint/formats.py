"""Checkpoint files of any kind and age -> plain content. Nothing in a file is ever executed."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from taming.checkpoint import inert
from taming.checkpoint.checksum import DamagedFileError, check
from taming.checkpoint.file_kinds import what_is_wrong
from taming.checkpoint.shards import folder_of, has_shards
from taming.checkpoint.stand_ins import Inert, tensor_of
from taming.checkpoint.weight_sets import choose
from taming.errors import REFUSALS, UserError, absence, reason_of
from taming.published_models import how_to_fetch
from taming.user_files import read_text

Read = TypeVar("Read")
SAFETENSORS, INDEX = ".safetensors", ".index.json"
_SHARD = re.compile(r"-\d{5}-of-(\d{5})(?=\.\w+$)")
_MOST_GROWTH = 8  # of an archive of arrays, which may be compressed

# What torch, pickle and zipfile raise for files that are cut short or something else altogether.
BROKEN: tuple[type[Exception], ...] = (pickle.UnpicklingError, zipfile.BadZipFile, struct.error)
BROKEN += (RuntimeError, EOFError, ValueError, TypeError, AttributeError, LookupError, OSError)
BROKEN += (MemoryError, OverflowError)  # for a nonsensical length of what follows


def read_content(path: str | Path) -> Any:
    """Read a file of torch, any other pickle, or safetensors (also by the index of its shards).

    Tensors are mapped from the file, and read when they are used; files of torch before 1.6 are
    read into memory as a whole. A checksum in the file is compared with all of its content.

    Raises:
        UserError: for a file that is missing, no checkpoint, damaged, or that holds code.
    """
    path = index_of(Path(path))
    if path.name.endswith(INDEX):
        return explained(path, _read_shards)
    shards, content = shards_with(path), _read_one(path)
    return _read_without_index(path, shards) if shards and _is_flat(content) else content


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """As `read_content`: a dict with `state_dict`, the weights, and what else the file has.

    Raises:
        UserError: if there are no weights, too.
    """
    content = read_content(path)
    if has_shards(content):
        folder_of(content, Path(path))  # a damaged one is another file's reason to be chosen
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        return dict(content)
    others = dict(content) if isinstance(content, Mapping) else {}
    rest = {name: value for name, value in others.items() if not isinstance(value, Tensor)}
    return {**rest, "state_dict": dict(choose(content, path).tensors)}


def read_program(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript program by their names, as its `state_dict()` has them.

    Nothing of the program is run.

    Raises:
        UserError: as `read_content` does.
    """
    content = explained(Path(path), lambda path: inert.read_zip(path, program=True))
    return dict(_attributes(content, ""))


def is_program(path: Path) -> bool:
    """Whether a file is a TorchScript program, which has weights among other things."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _attributes(module: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module and of those in it, which a program has as attributes."""
    state = module.state if isinstance(module, Inert) else None
    for name, value in state.items() if isinstance(state, Mapping) else ():
        if isinstance(value, Tensor):
            yield f"{place}{name}", value
        else:
            yield from _attributes(value, f"{place}{name}.")


def is_mapped(path: Path) -> bool:
    """Whether a checkpoint's tensors are read from its file only when they are used."""
    if path.name.endswith(INDEX) or shards_with(path) or is_safetensors(path):
        return True
    return zipfile.is_zipfile(path) and not _is_npz(path)


def index_of(path: Path) -> Path:
    """The index of the shards to which a file belongs, if it lies beside; else the file."""
    name = _SHARD.sub("", path.name)
    if name == path.name:
        return path
    index = path.with_name(name + INDEX)
    return index if index.is_file() else path


def shards_with(path: Path) -> list[Path]:
    """All shards of the weights of which a file is one, by their names; empty if it is none."""
    match = _SHARD.search(path.name)
    if match is None:
        return []
    head, tail = path.name[: match.start()], path.name[match.end() :]
    count = int(match[1])
    return [path.with_name(f"{head}-{i:05d}-of-{count:05d}{tail}") for i in range(1, count + 1)]


def stands_alone(path: Path) -> bool:
    """Whether a file is no shard, whatever it is called: people count steps in names as well."""
    return not shards_with(path) or not _is_flat(_read_one(path))


def _is_flat(content: Any) -> bool:
    """Whether these are tensors by name, as in shards, not a checkpoint that has them inside."""
    values = list(content.values()) if isinstance(content, Mapping) else []
    inside = (tensor for value in values if isinstance(value, Mapping) for tensor in value.values())
    return _any_tensor(values) and not _any_tensor(inside)


def _any_tensor(values: Iterable[Any]) -> bool:
    return any(isinstance(value, Tensor) for value in values)


def explained(path: Path, read: Callable[[Path], Read]) -> Read:
    """The result of `read`; its failure is a `DamagedFileError` that says what the file is."""
    if path.is_dir():
        raise UserError(f"{absence('checkpoint', path)}; name a file in it")
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}{how_to_fetch(path)}")
    try:
        check(path)
        return read(path)
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            raise UserError(f"{path} cannot be read ({reason_of(error)})") from None
        raise DamagedFileError(f"{path} {what_is_wrong(path, error)}") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def files_of_index(path: Path) -> dict[str, str]:
    """The name of the file with each tensor of an index; all are files beside it.

    Raises:
        UserError: if it is no such index.
        ValueError: if it is no JSON.
    """
    index = json.loads(read_text(path))
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise UserError(f"{path} is no index of weights: it has no 'weight_map'")
    for file in sorted(set(names.values())):
        if Path(file).name != file:
            raise UserError(f"{path} names '{file}', which is no file beside it; refused")
    return names


def _read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names."""
    names = files_of_index(path)
    state: dict[str, Tensor] = {}
    for file in sorted(set(names.values())):
        shard = path.parent / file
        if not shard.is_file():
            raise UserError(f"{path} names {file}, which is missing beside it; fetch that as well")
        state |= _tensors_in(shard)
    if absent := sorted(names.keys() - state.keys()):
        raise UserError(f"{path} names '{absent[0]}', which is in none of its files")
    return state


def _read_without_index(path: Path, shards: list[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for shard in shards:
        if path.is_file() and not shard.is_file():
            raise UserError(
                f"{path} is one of {len(shards)} files, and {shard.name} is missing beside it; "
                "fetch that as well"
            )
        state |= _tensors_in(shard)
    return state


def _tensors_in(shard: Path) -> dict[str, Tensor]:
    content = _read_one(shard)
    named = content.items() if isinstance(content, Mapping) else ()
    return {name: tensor for name, tensor in named if isinstance(tensor, Tensor)}


def _read_one(path: Path) -> Any:
    return explained(path, _read_file)


def _read_file(path: Path) -> Any:
    if is_safetensors(path):
        return _read_safetensors(path)
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            return inert.read_stream(path, file)
    return _read_npz(path) if _is_npz(path) else inert.read_zip(path)


def _is_npz(path: Path) -> bool:
    """Whether a zip archive is one of NumPy's, of arrays by name."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_npz(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > _MOST_GROWTH * path.stat().st_size:
        raise ValueError(f"it says that it holds {claimed:,} bytes")
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in arrays.files if not _is_of_objects(path, name)]
        if arrays.files and not names:
            raise UserError(
                f"{path}: '{arrays.files[0]}' is an array of Python's objects; save the arrays by "
                "name, numpy.savez(path, **state)"
            )
        tensors = {name: tensor_of(arrays[name]) for name in names}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _is_of_objects(path: Path, name: str) -> bool:
    """By the array's header, which its file begins with; NumPy would not read its content."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        return b"'descr': '|O'" in file.read(1000)


def is_safetensors(path: Path) -> bool:
    """By its header, of which the length comes first; people rename files."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return True
    return path.suffix == SAFETENSORS and not start.startswith((b"PK", b"\x80"))

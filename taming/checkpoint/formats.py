"""Checkpoint files of any kind and age -> plain content. Nothing in a file is ever executed."""

from __future__ import annotations

import _compat_pickle
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from taming.checkpoint.checksum import DamagedFileError, check
from taming.errors import UserError

Read = TypeVar("Read")

# What torch, pickle and zipfile raise for files that are cut short or something else altogether.
BROKEN: tuple[type[Exception], ...] = (pickle.UnpicklingError, zipfile.BadZipFile, struct.error)
BROKEN += (RuntimeError, EOFError, ValueError, TypeError, AttributeError, LookupError, OSError)
BROKEN += (MemoryError, OverflowError)  # for a nonsensical length of what follows


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a `.ckpt`, `.pt` or `.safetensors` file: a dict with `state_dict` and what else it has.

    Tensors are mapped from the file, and read when they are used; files of torch before 1.6 are
    read into memory as a whole. A checksum in the file is compared with all of its content.

    Raises:
        UserError: for a file that is missing, no checkpoint, damaged, or that holds code.
    """
    path = Path(path)
    read = _read_safetensors if path.suffix == ".safetensors" else load_torch
    content = explained(path, read)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        return dict(content)
    tensors = isinstance(content, Mapping) and all(isinstance(t, Tensor) for t in content.values())
    if tensors and content:
        return {"state_dict": dict(content)}
    raise UserError(f"{path} holds no model weights (no 'state_dict' in it)")


def is_mapped(path: Path) -> bool:
    """Whether a checkpoint's tensors are read from its file only when they are used."""
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


def explained(path: Path, read: Callable[[Path], Read]) -> Read:
    """The result of `read`; its failure is a `DamagedFileError` that says what the file is."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}")
    try:
        check(path)
        return read(path)
    except BROKEN as error:
        raise DamagedFileError(f"{path} {_what_is_wrong(path, error)}") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


# ---------------------------------------------------------------------- torch's files

# Classes that Lightning and OmegaConf of their time, and scripts, left in checkpoints. They become
# inert objects; anything else that is not plain data is refused.
_FOREIGN: tuple[str, ...] = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "numpy.")
_FOREIGN += ("omegaconf.", "argparse.", "collections.", "pathlib.", "typing.")
_FOREIGN += ("taming.", "main.", "__main__.")
_PLAIN = {"dict", "int", "float", "str", "bool", "list", "tuple", "object"}
# Names that torch's own safe reader decides about.
_TORCH = re.compile(
    r"torch\.(_utils|_tensor|serialization|storage|cuda|nn\.parameter)\.\w+|torch\.\w+"
)
SAFE = {"collections.OrderedDict", "collections.Counter", "_codecs.encode"}
SAFE |= {"builtins.set", "builtins.complex", "builtins.bytearray"}


def load_torch(path: Path, packages: tuple[str, ...] = ()) -> Any:
    """The content of a file of torch's; foreign classes, and those of `packages`, as `Inert`."""
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_claims(path)
    names = sorted(_names_in(path, zipped) - SAFE)
    stand_ins = [(stand_in(path, name, packages), name) for name in names]
    safe: list[Any] = [pair for pair in stand_ins if pair[0] is not None]
    with torch.serialization.safe_globals(safe), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickle protocols and deprecated storages of old files
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _check_claims(path: Path) -> None:
    """Torch writes tensors as they are; compressed ones could be any number of zeros."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > path.stat().st_size:
        raise ValueError(f"it says that it holds {claimed:,} bytes")


def _names_in(path: Path, zipped: bool) -> set[str]:
    """All classes and functions that a checkpoint names."""
    if not zipped:
        names: set[str] = set()
        with path.open("rb") as file, suppress(ValueError):  # torch's own error says more
            for _ in range(4):  # magic number, protocol, system, content; then raw tensors
                names |= _names_in_pickle(file)
        return names
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if not pickles:
            raise ValueError("no data.pkl in it")
        with archive.open(pickles[0]) as file:
            return _names_in_pickle(file)


def _names_in_pickle(file: IO[bytes]) -> set[str]:
    names, strings = set(), ["", ""]
    for opcode, argument, _ in pickletools.genops(file):
        if isinstance(argument, str) and "UNICODE" in opcode.name:
            strings = [strings[-1], argument]
        elif opcode.name in ("GLOBAL", "INST"):
            names.add(todays_name(*str(argument).split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL":  # torch does not read these, but a refusal names them
            names.add(".".join(strings))
    return names


def todays_name(module: str, name: str) -> str:
    """The full name of a pickled class or function; protocol 2 uses Python 2's names for some."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def stand_in(path: Path, name: str, packages: tuple[str, ...]) -> Callable[..., Any] | None:
    """What replaces a class or function that a file names; None for torch's own.

    Names that are neither plain data nor foreign and known to be harmless are refused.
    """
    if name in _STAND_INS:
        return _STAND_INS[name]
    if name.removeprefix("builtins.") in _PLAIN or name.startswith(_FOREIGN + packages):
        return type("Inert", (Inert,), {})
    if _TORCH.fullmatch(name):
        return None
    if name.startswith("torch.nn."):
        raise UserError(
            f"{path} is a whole pickled model ({name}), not weights; save its state_dict() instead"
        )
    raise UserError(f"{path} would run '{name}' when loaded; it is refused as unsafe")


class Inert:
    """Replaces a foreign class of an old checkpoint: keeps its pickled state as data."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _NumpyType(Inert):
    """Replaces numpy.dtype, which is called with the type's code."""

    def __init__(self, code: str | bytes, *flags: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code


def _numpy_scalar(kind: Any, data: Any = b"") -> int | float | bool | None:
    """A numpy number as Python's; None for any other type."""
    if not isinstance(kind, _NumpyType) or not re.fullmatch("b1|f[248]|[iu][1248]", kind.code):
        return None
    raw = data.encode("latin1") if isinstance(data, str) else data
    (number,) = np.frombuffer(raw, f"<{kind.code}").tolist()
    return number


_STAND_INS: dict[str, Callable[..., Any]] = {
    "collections.defaultdict": lambda *factory: {},
    "numpy.dtype": _NumpyType,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}


_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")


def _what_is_wrong(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    size = f"{path.stat().st_size:,} bytes"
    if not start:
        return "is an empty file; fetch or save it again"
    if start.lstrip().startswith(_IMAGES):
        return "is an image, not a checkpoint"
    if start.lstrip().startswith(b"<"):
        return "is a web page, not a checkpoint; its link may need a browser or a login"
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"is cut short (it ends after {size}); fetch or save it again"
    if start.startswith(b"PK") and "data.pkl" in str(error):
        return "is an archive without weights; unpack it and give the checkpoint inside"
    if path.suffix != ".safetensors" and start.isascii() and b"\0" not in start:
        return "is a text file, not a checkpoint"
    lines = [line for line in str(error).splitlines() if "Unpickler" in line]
    reason = (lines or str(error).split("\n") or [""])[0].strip() or type(error).__name__
    return f"is no checkpoint, or damaged or cut short ({size}: {reason}); fetch or save it again"

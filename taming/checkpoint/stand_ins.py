"""What the names in a pickle stand for: inert classes, and functions that make plain data."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.errors import UserError

PYTHON_2 = ("utf-8", "surrogateescape")  # how its strings are decoded, so that none is lost
# Names that start programs, reach files, or read further code.
RUNS_CODE = re.compile(
    r"(os|posix|nt|subprocess|pty|runpy|importlib|ctypes|code|commands|shutil|socket|webbrowser"
    r"|torch\.hub|torch\.jit|torch\.utils\.cpp_extension)\..+"
    r"|builtins\.(eval|exec|execfile|compile|__import__|open|input|breakpoint)"
)


def as_bytes(data: Any) -> Any:
    """Python 2's strings of bytes, which are read as texts, as bytes; all else unchanged."""
    return data.encode(*PYTHON_2) if isinstance(data, str) else data


class Inert(dict[Any, Any]):
    """Replaces an object of any class: what its pickle says of it, as data.

    A mapping's items are its own. `args` are what it would be made from, `state` its attributes or
    what else it keeps, `sequence` the entries of a list or set.
    """

    args: tuple[Any, ...] = ()
    state: Any = None
    sequence: list[Any]
    __hash__ = object.__hash__  # type: ignore[assignment]  # enums are keys of mappings

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        made = dict.__new__(cls)
        made.args, made.sequence = args, []
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return self is other

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return type(self)(*args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, entry: Any) -> None:
        self.sequence.append(entry)

    add = append

    def extend(self, entries: Any) -> None:
        self.sequence.extend(entries)


def inert_class(*args: Any) -> type[Inert]:
    """A new class, so that a pickle that sets attributes of it changes no other reading."""
    return type("Inert", (Inert,), {"args": args})


class Refused(Inert):
    """Replaces what runs code, which a file may name among its data, but not call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        path, name = self.args
        raise UserError(f"{path} would run '{name}' when loaded; it is refused as unsafe")


class NumpyArray(Inert):
    """Replaces an array; `state` is (version, shape, dtype, whether columns come first, data)."""

    def tensor(self) -> Tensor | None:
        """Its numbers; None of other types, and of data that do not fill the shape."""
        _, shape, kind, columns_first, data = self.state
        dtype = _numpy_dtype(kind)
        raw = as_bytes(data)
        if dtype is None or not isinstance(raw, bytes | bytearray):
            return None
        if math.prod(shape) * dtype.itemsize != len(raw):
            return None
        array = np.frombuffer(raw, dtype).reshape(shape, order="F" if columns_first else "C")
        return tensor_of(array)


def tensor_of(array: np.ndarray) -> Tensor | None:
    """The numbers of an array; None of other types, and of those that torch reckons little with.

    NumPy, which has no bfloat16, keeps it as two bytes without a type.
    """
    if array.dtype == "V2":
        bits = np.array(array.view("<i2"), np.int16, order="C")
        return torch.from_numpy(bits).view(torch.bfloat16)
    if not re.fullmatch("b1|f[248]|i[1248]|u1", array.dtype.str[1:]):
        return None
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))


class QuantizedTensor(Inert):
    """Replaces a quantized tensor; `args` are those of torch's function that makes one."""

    def tensor(self) -> Tensor:
        """The numbers that it stands for: not at once, as old files have its bytes at their end."""
        storage, offset, size, stride, how = self.args[:5]
        numbers = _tensor(storage, offset, size, stride).float()
        _, scale, zero, *axis = how  # one scale and zero point, or those of the axis's channels
        if axis:
            shape = [-1 if side == axis[0] else 1 for side in range(numbers.dim())]
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        dequantized: Tensor = (numbers - zero) * scale
        return dequantized.float()


def _numpy_dtype(kind: Any) -> np.dtype[Any] | None:
    """That of a pickled dtype, if it is one of plain numbers."""
    code = kind.args[0] if isinstance(kind, Inert) and kind.args else ""
    code = code.decode() if isinstance(code, bytes) else str(code)
    if not re.fullmatch("b1|f[248]|[iu][1248]|V2", code):
        return None
    big = isinstance(kind.state, tuple) and len(kind.state) > 1 and kind.state[1] in (">", b">")
    return np.dtype(f"{'>' if big else '<'}{code}")


# ---------------------------------------------------------------------- what names become


def _numpy_array(*_: Any) -> NumpyArray:
    return NumpyArray()


def _numpy_array_of(data: Any, kind: Any, shape: Any, order: Any = "C", *_: Any) -> NumpyArray:
    made = NumpyArray()
    made.state = (1, shape, kind, order in ("F", b"F"), data)
    return made


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    start = storage.storage_offset()  # not 0 in a part of a storage
    return torch.as_strided(storage, tuple(size), tuple(stride), start + offset)


def _tensor_of_dtype(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    return _tensor(storage.view(rest[2]), offset, size, stride)


def _shape_alone(dtype: Any, size: Any, *_: Any) -> Tensor:
    """A tensor on the device "meta", whose numbers are elsewhere."""
    return torch.empty(tuple(size), dtype=dtype, device="meta")


def _rebuilt(make: Callable[..., Any], kind: Any, args: Any, state: Any) -> Any:
    """A tensor of a subclass, as the tensor that it is."""
    return make(*args)


def _reconstructed(kind: type[Inert], base: Any, items: Any) -> Inert:
    """An object of the oldest pickles; `items` are those of the class that it inherits from."""
    made = kind()
    if isinstance(items, Mapping):
        made.update(items)
    elif isinstance(items, list | tuple | set):
        made.extend(items)
    return made


def _numpy_scalar(kind: Any, data: Any = b"") -> int | float | bool | None:
    """A numpy number as Python's; None for any other type."""
    dtype = _numpy_dtype(kind)
    if dtype is None:
        return None
    raw = as_bytes(data)
    (number,) = np.frombuffer(raw, dtype).tolist()
    return number


def _plain_dict(*items: Any) -> dict[Any, Any]:
    """A Counter or defaultdict; the latter's argument is its factory."""
    return dict(items[0]) if items and type(items[0]) is dict else {}


def _path_text(*parts: str) -> str:
    return str(Path(*map(str, parts)))


def _encoded(text: str, encoding: str = "utf-8") -> bytes:
    return str(text).encode(encoding)  # `codecs.encode` would decompress as well


def _byte_array(data: Any = b"", encoding: str = "latin-1") -> bytes:
    return bytes(data) if isinstance(data, bytes) else _encoded(data, encoding)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_qtensor": QuantizedTensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": _shape_alone,
    "torch._tensor._rebuild_from_type": _rebuilt,
    "torch._tensor._rebuild_from_type_v2": _rebuilt,
    "torch.Size": lambda sides=(): torch.Size(sides),
    "torch.device": lambda *parts: ":".join(map(str, parts)),
    "collections.Counter": _plain_dict,
    "collections.defaultdict": _plain_dict,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "builtins.getattr": inert_class,  # enums and methods of some Pythons
    "builtins.bytearray": _byte_array,
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _reconstructed,
    "copyreg.__newobj__": lambda kind, *args: kind(*args),
    "copyreg.__newobj_ex__": lambda kind, args, kwargs: kind(*args),
}
FUNCTIONS |= {
    f"numpy.{core}.{name}": function
    for core in ("core", "_core")
    for name, function in (
        ("multiarray._reconstruct", _numpy_array),
        ("numeric._frombuffer", _numpy_array_of),
    )
}
FUNCTIONS |= {
    f"{package}.{pure}{system}Path": _path_text
    for package in ("pathlib", "pathlib._local")
    for pure in ("", "Pure")
    for system in ("", "Posix", "Windows")
}

# Types that are what they are called; nobody can set attributes of them.
TYPES: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.UntypedStorage": torch.uint8,
    "ml_dtypes.bfloat16": "V2",  # what NumPy calls it
}
TYPES |= {f"torch.{k}": v for k, v in vars(torch).items() if isinstance(v, torch.dtype)}
_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
}
TYPES |= {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in _STORAGES.items()
}

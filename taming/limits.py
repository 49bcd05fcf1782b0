"""Sizes in configs are refused before memory is asked for that the machine does not have."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from taming.errors import UserError

# The largest model that is published here has 800 tensors.
_MOST_TENSORS = 200_000
_SHAPED = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full}

_from_file: ContextVar[bool] = ContextVar("from_file", default=False)

# Where in a config each object under construction stands, and its parameters there.
_built: ContextVar[tuple[tuple[str, Mapping[str, Any]], ...]] = ContextVar("built", default=())
_limited: ContextVar[bool] = ContextVar("limited", default=False)


def peak_memory() -> int | None:
    """Bytes of memory that this process has had at most; None on Windows."""
    with suppress(OSError, ValueError, IndexError):  # other systems, and some containers
        # `getrusage` counts what a parent had when it started this process, too.
        return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    try:
        import resource  # which Windows lacks
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


@contextmanager
def weights_from_file() -> Iterator[None]:
    """A context in which models are built whose weights stay in a file until they are used."""
    token = _from_file.set(True)
    try:
        yield
    finally:
        _from_file.reset(token)


@contextmanager
def within_memory(place: str, params: Mapping[str, Any]) -> Iterator[None]:
    """A context in which a model is built, or a part of it, from the `params` at `place`.

    Raises:
        UserError: before its tensors take more than all the memory of this machine, naming the
            parameter that is likely to make them so large.
    """
    token = _built.set((*_built.get(), (place, params)))
    limited = _limited.set(True)
    try:
        if limited.old_value is True:
            yield
        else:
            with _MemoryLimit():
                yield
    except (MemoryError, RuntimeError) as error:  # torch's allocators raise the latter
        if isinstance(error, MemoryError) or "allocate" in str(error) or "memory" in str(error):
            raise _too_large((), f"there is not enough memory ({_first_line(error)})") from None
        raise
    finally:
        _limited.reset(limited)
        _built.reset(token)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()


class _MemoryLimit(TorchFunctionMode):
    """Counts the tensors that are made, before they are."""

    def __init__(self) -> None:
        super().__init__()
        self.limit, self.bytes, self.tensors = memory_limit(), 0, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        shape = _shape_made(func, args, kwargs)
        if shape is not None and torch.get_default_device().type != "meta":
            self._count(shape, kwargs.get("dtype"))
        return func(*args, **kwargs)

    def _count(self, shape: tuple[int, ...], dtype: Any) -> None:
        size = math.prod(shape) * (dtype.itemsize if isinstance(dtype, torch.dtype) else 4)
        self.bytes, self.tensors = self.bytes + size, self.tensors + 1
        machine = _machine(self.limit)
        if size > self.limit:
            sides = " x ".join(map(str, shape))
            raise _too_large(
                shape, f"it makes a tensor of {sides} ({readable_size(size)}); {machine}"
            )
        if self.bytes > self.limit:
            raise _too_large(
                (), f"the model takes more than {readable_size(self.limit)}; {machine}"
            )
        if self.tensors > _MOST_TENSORS:
            raise _too_large((), f"the model has more than {_MOST_TENSORS:,} tensors")


def _shape_made(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The shape of the tensor that a call makes; None for other and for impossible calls."""
    sizes: Any = None
    if func in _SHAPED:
        first = kwargs.get("size", args[0] if args else ())
        sizes = first if isinstance(first, list | tuple) else args
    elif func is torch.arange:
        numbers = [value for value in (*args, *kwargs.values()) if isinstance(value, int | float)]
        start, end, *step = numbers if len(numbers) > 1 else [0, *numbers, 0][:2]
        sizes = [int(abs(end - start) / abs((step or [1])[0] or 1))]
    elif func in (torch.eye, torch.randperm):
        sizes = [value for value in args if isinstance(value, int)]
    elif func in (Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.repeat):
        sizes = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
    if sizes is None or not all(type(value) is int and value >= 0 for value in sizes):
        return None
    return tuple(sizes)


def check_sizes(within: str = "", *, least: int = 1, most: int = 2**31 - 1, **sizes: float) -> None:
    """Refuse numbers outside of [least, most], by their names in the config that is being built.

    Loops over a number are limited by it, and products of numbers by the memory.

    Args:
        within: the parameter in which they are, if they are not parameters themselves.

    Raises:
        UserError: for the first such number.
    """
    for name, size in sizes.items():
        if not least <= size <= most:
            place = _built.get()[-1][0] if _built.get() else ""
            key = ".".join(part for part in (place, within, name) if part)
            raise UserError(f"{key} is {size}; it must be from {least} to {most:,}")


def check_memory(elements: float, **sizes: int) -> None:
    """Refuse numbers that give a part of a model so many elements that memory does not hold them.

    Raises:
        UserError: naming the largest of `sizes`.
    """
    size, limit = 4 * int(elements), memory_limit()
    if size > limit:
        name = max(sizes, key=lambda name: sizes[name])
        place = _built.get()[-1][0] if _built.get() else ""
        raise UserError(
            f"{f'{place}.{name}'.strip('.')} is {sizes[name]}, which is too large: it makes "
            f"{readable_size(size)} of weights; {_machine(limit)}"
        )


CHANNELS = 64  # of the layers of a small model at full resolution


def check_picture(height: int, width: int) -> None:
    """Refuse images of which memory does not even hold one layer of a network.

    Raises:
        UserError: naming the size.
    """
    size, limit = 4 * CHANNELS * height * width, memory_limit()
    if size > limit:
        raise UserError(
            f"images of {width} x {height} pixels are too large: a layer of {CHANNELS} channels "
            f"takes {readable_size(size)}; {_machine(limit)}"
        )


def memory_limit() -> int:
    """Bytes that the tensors of a model may take: what is free, or of the container if fewer.

    All of the machine's while `weights_from_file`.
    """
    limits = [2**40]
    with suppress(OSError, ValueError, IndexError):  # other systems than Linux
        wanted = "MemTotal:" if _from_file.get() else "MemAvailable:"
        table = Path("/proc/meminfo").read_text()
        limits.append(1024 * int(table.partition(wanted)[2].split()[0]))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # "max", or no such file
            continue
    return min(limits)


def _machine(limit: int) -> str:
    return f"this machine has {readable_size(limit)} of {'' if _from_file.get() else 'free '}memory"


def readable_size(size: int) -> str:
    """Bytes in a unit of which they are at most 1023."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size //= 1024
    return f"{size:.4g} PiB"


def readable_time(seconds: float) -> str:
    """Seconds as a person says them: "0.42 s", "35 min", "3 h 20 min", "12 days"."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{round(seconds / 86400)} days"


def _too_large(shape: Sequence[int], reason: str) -> UserError:
    """Names the number in the config that a side of the tensor is a multiple of, or the largest."""
    for place, params in reversed(_built.get()):
        numbers = sorted(_numbers(params, place), key=lambda pair: -pair[1])
        at_fault = [pair for pair in numbers if any(side % pair[1] == 0 for side in shape)]
        for key, value in (at_fault or numbers)[:1]:
            if value >= 1000 or len(_built.get()) == 1:
                return UserError(f"{key} is {value:.4g}, which is too large: {reason}")
    place = _built.get()[0][0]
    return UserError(f"{place or 'the model'} is too large: {reason}")


def _numbers(node: Any, place: str) -> Iterator[tuple[str, int]]:
    """The numbers above 1 in a tree of dicts and lists, with their places."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _numbers(value, f"{place}.{key}".strip("."))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _numbers(value, place)
    elif isinstance(node, int) and not isinstance(node, bool) and node > 1:
        yield place, node

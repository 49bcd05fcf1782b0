"""Datasets that wrap or join others: the one way from a dataset to what is inside of it."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import ConcatDataset, Dataset, Subset

from taming.data.base import ImageFiles
from taming.data.cropped_images import CroppedImageFiles
from taming.data.custom import CustomBase
from taming.data.transforms import JointTransform
from taming.errors import UserError
from taming.user_code import is_ours, is_users, name_of

T = TypeVar("T")
# Wrappers of any project keep what they wrap in `data`, torch's in `dataset` and `datasets`.
_INSIDE = ("data", "dataset", "datasets")
# What an item goes through on its way from its files; the first two in any dataset.
_ON_THE_WAY: tuple[str, ...] = ("__getitem__", "__getitems__", "_item", "load", "whole")
_ON_THE_WAY += ("preprocess_image", "read_item", "read_maps", "cropped", "finish", "finish_image")
_ON_THE_WAY += ("picture", "image_transform", "values_of")
_MANY = 100  # entries; longer lists are of files
_MOST_HELD = 10_000  # objects that are looked at, of what may be a graph of anything


def parts(dataset: object) -> list[Any]:
    """The datasets that `dataset` wraps or joins, in the order of its items."""
    own = _attributes(dataset)
    inside = {id(own[name]): own[name] for name in _INSIDE if name in own}
    return [part for value in inside.values() for part in _datasets_in(value)]


def _attributes(value: object) -> Mapping[str, Any]:
    """Of the object alone: a tensor's `data`, which is another tensor each time, is none."""
    try:
        return vars(value)
    except TypeError:
        return {}


def _datasets_in(value: object) -> Sequence[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return [value] if _is_dataset(value) else []
    return value if any(map(_is_dataset, value[:_MANY])) else []


def _is_dataset(value: object) -> bool:
    """Whether it is a dataset, or wraps something as one."""
    return isinstance(value, Dataset) or not _attributes(value).keys().isdisjoint(_INSIDE)


def image_files_in(dataset: object) -> Iterator[ImageFiles]:
    """The `ImageFiles` that `dataset` is, wraps or joins, in the order of its items."""
    yield from (one for one in _all_in(dataset) if isinstance(one, ImageFiles))


def _all_in(dataset: object, above: tuple[object, ...] = ()) -> Iterator[object]:
    """A dataset and all below it; those that refer to each other are cut where that begins anew."""
    if any(dataset is one for one in above):
        return
    yield dataset
    for part in () if isinstance(dataset, ImageFiles) else parts(dataset):
        yield from _all_in(part, (*above, dataset))


def located(dataset: Any, index: int) -> tuple[Any, int]:
    """Which of `parts(dataset)` has its item `index`, and the index there.

    Raises:
        UserError: if that is known to the dataset's code alone.
    """
    if isinstance(dataset, Subset):
        return dataset.dataset, dataset.indices[index]
    if isinstance(dataset, ConcatDataset):
        part = int(np.searchsorted(dataset.cumulative_sizes, index, side="right"))
        before = dataset.cumulative_sizes[part - 1] if part else 0
        return dataset.datasets[part], index - before
    below = parts(dataset)
    if [len(part) for part in below if isinstance(part, Sized)] != [len(dataset)]:
        raise UserError(
            f"{name_of(type(dataset))} alone knows which files its items are of; give the dataset "
            "that it wraps, or join several by torch's ConcatDataset"
        )
    return below[0], index


def changed_by(dataset: object) -> str:
    """The user's method, `my_data.Gray.__getitem__`, that may change items on their way from image
    files, or set the transform that does; nothing if there is none."""
    for one in _all_in(dataset):
        names = _ON_THE_WAY if isinstance(one, ImageFiles) else _ON_THE_WAY[:2]
        for cls in type(one).__mro__:
            if not is_ours(cls) and cls.__module__.partition(".")[0] not in ("torch", "builtins"):
                for name in sorted(vars(cls).keys() & names):
                    return f"{name_of(cls)}.{name}"
        if isinstance(one, ImageFiles) and (name := _own_transform(one)):
            return f"{name_of(type(one))}.{name}"
    return ""


def _own_transform(files: ImageFiles) -> str:
    if isinstance(files, CroppedImageFiles):
        known = all(is_ours(type(function)) for function in files.transform_functions)
        return "" if known else "setup_transform"
    return "" if isinstance(files.preprocessor, JointTransform) else "preprocessor"


def handed_on(dataset: object) -> list[ImageFiles]:
    """The `ImageFiles` whose items, each as it is, are those of `dataset`; none if it changes or
    chooses them."""
    if isinstance(dataset, ImageFiles):
        return [] if changed_by(dataset) else [dataset]
    as_they_are = (CustomBase.__getitem__, ConcatDataset.__getitem__)
    if not isinstance(dataset, Dataset) or type(dataset).__getitem__ not in as_they_are:
        return []
    return [files for part in parts(dataset) for files in handed_on(part)]


def held_by(value: object, kind: type[T], in_code: bool = False) -> list[T]:
    """What is of a kind in the attributes of a dataset, and of all that is inside of these: other
    datasets, lists, tuples and dicts, and objects of the user's own classes; `in_code`: and what
    functions and classes of the user's name, such as a constant of a module."""
    found: list[T] = []
    seen: set[int] = set()
    pending = [value]
    while pending and len(seen) < _MOST_HELD:
        one = pending.pop()
        if id(one) in seen or isinstance(one, type | types.ModuleType):
            continue
        seen.add(id(one))
        if isinstance(one, kind):
            found.append(one)
        else:
            pending += reversed([*_held(one), *(_named_in_code(one) if in_code else ())])
    return found


def _held(value: object) -> Sequence[object]:
    if isinstance(value, Mapping | list | tuple):
        entries = value.values() if isinstance(value, Mapping) else value
        return list(entries) if len(value) < _MANY else []
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    held = isinstance(value, Dataset) or is_users(type(value))
    return list(_attributes(value).values()) if held else []


def _named_in_code(value: object) -> Iterator[object]:
    if isinstance(value, property | staticmethod | classmethod):
        value = value.fget if isinstance(value, property) else value.__func__
    if not isinstance(value, types.FunctionType):
        for cls in type(value).__mro__:
            yield from vars(cls).values() if is_users(cls) else ()
    elif is_users(value):
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # of a variable that has no value yet
                yield cell.cell_contents
        names = value.__code__.co_names
        yield from (value.__globals__[name] for name in names if name in value.__globals__)

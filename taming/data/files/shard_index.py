"""What WebDataset shards hold: tars in which consecutive members `KEY.FIELD` are a sample."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from taming.data.columns import Column, StringTable, column
from taming.data.files.find import EXTENSIONS
from taming.data.files.list_files import write_lines
from taming.data.files.tar_members import member_path, require_plain
from taming.errors import UserError
from taming.shipped import script
from taming.user_files import DAMAGED_ARCHIVE, file_version, regular, with_home

UNKNOWN = "img"  # of images whose names do not say what they are
IMAGE_ENDINGS = (*EXTENSIONS, "npy", UNKNOWN)
TEXT_ENDINGS = {"cls": ("class_label", int), "txt": ("caption", str)}
_NOT_READ: tuple[type[Exception], ...] = (*DAMAGED_ARCHIVE, OSError, ValueError, TypeError)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_REMOTE = re.compile(r"pipe:|[A-Za-z]\w+://")
_Form = str | tuple[int, ...] | None  # of an entry, see `_form`


@dataclass
class Sample:
    """The members of a tar whose names share `key`."""

    key: str
    # (offset, size) in bytes by field, such as "jpg" or "depth.png".
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    # The contents of the JSON, .cls and .txt members.
    metadata: dict[str, Any] = field(default_factory=dict)


def find_shards(shards: str | Sequence[str]) -> list[str]:
    """The tars of a folder, of a pattern such as `data/train-*.tar` or WebDataset's
    `data/train-{0000..0146}.tar`, or of a list of these."""
    places = [shards] if isinstance(shards, str | Path) else shards
    return [tar for place in places for tar in _tars_at(str(with_home(place)))]


def _tars_at(where: str) -> Iterator[str]:
    if os.path.isdir(where):
        where = os.path.join(where, "*.tar")
    if os.path.isfile(where):
        yield where
        return
    if _REMOTE.match(where):
        raise UserError(f"{where}: shards are read from files; fetch them, and name the folder")
    for pattern in _without_braces(where):
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(_escaped(pattern)))
        if not found and pattern != where:
            raise UserError(f"there is no shard {pattern}, of {where}; fetch it, or leave it out")
        if not found:
            raise UserError(f"there are no shards {where}; write some with {script('make_shards')}")
        yield from found


def _without_braces(pattern: str) -> Iterator[str]:
    """What `{0000..0146}` and `{train,val}` in a pattern stand for, one after another."""
    if (match := _BRACES.search(pattern)) is None:
        yield pattern
        return
    before, after = pattern[: match.start()], pattern[match.end() :]
    for name in _choices(match):
        yield from _without_braces(f"{before}{name}{after}")


def _choices(braces: re.Match[str]) -> Iterable[str]:
    if braces[3] is not None:
        return braces[3].split(",")
    first, last = int(braces[1]), int(braces[2])
    step = 1 if first <= last else -1
    return (str(number).zfill(len(braces[1])) for number in range(first, last + step, step))


def image_ending(path: str) -> str:
    """What the name of an image in a shard ends with, whatever its file is called."""
    ending = os.path.splitext(os.path.basename(path).rstrip())[1].lower().lstrip(".")
    return ending if ending in IMAGE_ENDINGS else UNKNOWN


def _escaped(pattern: str) -> str:
    """A pattern below a folder that exists, whose name may have brackets and is no pattern."""
    folder, name = os.path.split(pattern)
    while folder and name and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
        name = os.path.relpath(pattern, folder or os.curdir)
    return os.path.join(glob.escape(folder), name)


def scan(tar: str) -> Iterator[Sample]:
    """The samples of a shard, from its members; raises `UserError` if it is damaged."""
    sample: Sample | None = None
    try:
        with tarfile.open(regular(tar), "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps every header
                folder, name = os.path.split(member.name)
                key, dot, name = name.partition(".")
                if not member.isreg() or not dot or not key:  # as files that Macs add, "._a.jpg"
                    continue
                require_plain(member, tar)
                key = os.path.join(folder, key)
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = Sample(key)
                _add(sample, archive, member, name)
    except _NOT_READ as error:
        raise UserError(f"the shard {tar} cannot be read ({error}); write it anew") from None
    if sample is not None:
        yield sample


def _add(sample: Sample, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
    if name != "json" and name not in TEXT_ENDINGS:
        sample.files[name] = (member.offset_data, member.size)
        return
    file = archive.extractfile(member)
    assert file is not None  # a plain file
    content = file.read()
    if name == "json":  # what is in a file of its own counts
        found = json.loads(content)
        sample.metadata = (found if isinstance(found, dict) else {name: found}) | sample.metadata
    else:
        entry, convert = TEXT_ENDINGS[name]
        sample.metadata[entry] = convert(content.decode().strip())


def read_index(tar: str) -> Iterator[Sample]:
    """As `scan`, from the file `<tar>.index`, which is written if it is absent or out of date."""
    # The size alone does not tell: the end of a tar is filled up, by 10 KiB, and a sample may be
    # added within that.
    version, index = "{} {}".format(*file_version(tar)), Path(f"{tar}.index")
    if index.is_file():
        with open(index, encoding="utf-8") as lines, _damage_named(index):
            if lines.readline().strip() == version:
                yield from (_sample(line) for line in lines)
                return
    samples = list(scan(tar))
    if os.access(index.parent, os.W_OK):
        rows = (json.dumps([one.key, one.files, one.metadata]) for one in samples)
        write_lines(index, [version, *rows])
    yield from samples


def _sample(line: str) -> Sample:
    key, files, metadata = json.loads(line)
    places = {str(name): (int(offset), int(size)) for name, (offset, size) in files.items()}
    return Sample(str(key), places, dict(metadata))


@contextlib.contextmanager
def _damage_named(index: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{index} is damaged; delete it, and it is written anew") from None


class ShardColumns:
    """The samples of many shards in flat memory, a column per field.

    `lengths` are the numbers of samples of the shards, `paths` columns of paths by the map's name,
    "image" for the images; `metadata` are columns of everything else of which there can be batches:
    texts, lists of texts, numbers, and arrays of one shape. `left_out` names entries that only some
    samples have, that are empty in some, or of several kinds.

    Raises:
        UserError: if a sample lacks an image or a map.
    """

    def __init__(self, tars: Sequence[str], maps: Iterable[str] = ()) -> None:
        self._maps = tuple(maps)
        self.lengths = array("q")
        parts: dict[str, list[Column]] = {}
        forms: dict[str, set[_Form]] = {}
        for tar in tqdm(tars, "reading indices", delay=2, disable=None, leave=False):
            rows = [self._row(tar, sample) for sample in read_index(tar)]
            self.lengths.append(len(rows))
            for name in dict.fromkeys(name for row in rows for name in row):
                values = [row.get(name) for row in rows]
                forms.setdefault(name, set()).update(map(_form, values))
                parts.setdefault(name, []).append(_column(values, forms[name]))
        if not parts:
            raise UserError(f"{tars[0]} has no samples; write the shards anew")
        everywhere = len(parts["/image"])
        usable = {name for name, some in parts.items() if len(some) == everywhere}
        usable -= {name for name, found in forms.items() if len(found) > 1 or None in found}
        self.left_out = [name for name in parts if name not in usable]
        joined = {name: _joined(some) for name, some in parts.items() if name in usable}
        self.paths: dict[str, StringTable] = {
            name: joined.pop(f"/{name}") for name in ("image", *self._maps)
        }
        self.metadata = joined

    def _row(self, tar: str, sample: Sample) -> dict[str, Any]:
        """Metadata, and paths under names that start with a slash."""
        row = sample.metadata | {"__key__": sample.key}
        for name in ("image", *self._maps):
            field_name = self._field(sample, name)
            if field_name is None:
                raise UserError(
                    f"the shard {tar} has no {name} for {sample.key} (it has "
                    f"{', '.join(sample.files)}); correct maps, or write the shard anew"
                )
            ending = field_name.rpartition(".")[2]
            row[f"/{name}"] = member_path(tar, *sample.files[field_name], ending)
        return row

    def _field(self, sample: Sample, wanted: str) -> str | None:
        """The field that holds a map, such as "depth.png", or the image, such as "jpg"."""
        for field_name in sorted(sample.files, key=lambda name: "." in name):  # "jpg" before others
            name, _, ending = field_name.rpartition(".")
            found = name == wanted if wanted in self._maps else name not in self._maps
            if found and ending.lower() in IMAGE_ENDINGS:
                return field_name
        return None


def _form(value: Any) -> _Form:
    """What a value is: "text", "texts" (a list of these), or the shape of numbers; None for others,
    of which there are no batches."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return () if isinstance(value, float) or value.bit_length() < 64 else None
    forms = {_form(part) for part in value} if isinstance(value, list) else set()
    form = forms.pop() if len(forms) == 1 else None
    if form == "text":
        return "texts"
    return (len(value), *form) if isinstance(form, tuple) else None


def _column(values: list[Any], forms: set[_Form]) -> Column:
    """A column of what has one form; an empty one of what has several, which is left out."""
    if len(forms) > 1 or None in forms:
        return []
    return column(values if forms <= {"text", "texts"} else np.array(values))


def _joined(parts: list[Column]) -> Any:
    if all(isinstance(part, StringTable) for part in parts):
        return StringTable(value for part in parts for value in part)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        return torch.cat(tensors)
    return [value for part in parts for value in part]


def paths_by_name(shards: str | Sequence[str], names: Sequence[str]) -> StringTable:
    """Where in the shards the images with these `file_name`s are; raises `UserError`."""
    columns = ShardColumns(find_shards(shards))
    listed = columns.metadata.get("file_name", columns.metadata["__key__"])
    places = {name: number for number, name in enumerate(listed)}
    if lacking := [name for name in names if name not in places]:
        raise UserError(
            f"{shards} lacks {len(lacking)} of {len(names)} images, such as {lacking[0]}"
        )
    return StringTable(columns.paths["image"][places[name]] for name in names)

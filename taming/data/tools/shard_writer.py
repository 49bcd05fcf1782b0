"""Writing any dataset of files as shards (see `taming.data.shards`): the files as they are."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset
from tqdm import tqdm

from taming.data.base import BadFile, Item, PathDataset
from taming.data.condition_maps import described
from taming.data.files.list_files import write_atomically
from taming.data.files.tar_members import read_bytes
from taming.data.image_with_maps import PairedPaths
from taming.data.shards import DESCRIPTION
from taming.errors import UserError

log = logging.getLogger(__name__)


def _sources(dataset: Any) -> Iterator[PathDataset]:
    """The `PathDataset`s in `dataset`, in the order of its items."""
    if isinstance(dataset, PathDataset):
        yield dataset
        return
    inner = getattr(dataset, "data", None)
    for part in getattr(dataset, "datasets", [] if inner is None else [inner]):
        yield from _sources(part)


def _sample(dataset: Any, index: int) -> tuple[dict[str, str], Item]:
    """The files and facts of an item of a dataset that may wrap others; raises `BadFile`."""
    if isinstance(dataset, PathDataset):
        return dataset.files(index), dataset.facts(index)
    if isinstance(dataset, ConcatDataset):
        part = int(np.searchsorted(dataset.cumulative_sizes, index, side="right"))
        before = dataset.cumulative_sizes[part - 1] if part else 0
        return _sample(dataset.datasets[part], index - before)
    files, facts = _sample(dataset.data, index)
    own = getattr(dataset, "facts", None)
    return files, facts | own(index) if own else facts


def write_shards(dataset: Any, output: str | Path, per_shard: int, skip_bad: bool = False) -> int:
    """Write the dataset as `output/shard-000000.tar` and so on; returns how many samples.

    Shards that are there stay, so that an interrupted call can be repeated. Raises `UserError`: a
    dataset without files, shards of another size in the folder, and for bad files unless these are
    to be skipped (and logged).
    """
    sources = list(_sources(dataset))
    if not sources:
        raise UserError(f"{type(dataset).__name__} has no image files that could go into shards")
    folder = Path(output)
    _describe(folder, sources[0], per_shard, len(dataset))
    starts = range(0, len(dataset), per_shard)
    bar = tqdm(starts, f"writing {folder}", unit=" shards", disable=None)
    skipped: list[str] = []
    for number, start in enumerate(bar):
        tar = folder / f"shard-{number:06}.tar"
        if not tar.is_file():
            indices = range(start, min(start + per_shard, len(dataset)))
            _write_tar(dataset, indices, tar, skipped if skip_bad else None)
    for sentence in skipped:
        log.warning("skipped: %s", sentence)
    return len(dataset) - len(skipped)


def _describe(folder: Path, source: PathDataset, per_shard: int, count: int) -> None:
    maps = source.maps if isinstance(source, PairedPaths) else {}
    content = {
        "maps": {name: described(maps.kind) for name, maps in maps.items()},
        "interpolation": getattr(source, "interpolation", "bilinear"),
        "per_shard": per_shard,
        "samples": count,
    }
    file = folder / DESCRIPTION
    if file.is_file() and json.loads(file.read_text()) != content:
        raise UserError(f"{folder} has shards of other data or another size; give an empty folder")
    write_atomically(file, [json.dumps(content, indent=2)])


def _write_tar(dataset: Any, indices: range, tar: Path, skipped: list[str] | None) -> None:
    partial = tar.with_name(f".{tar.name}.part")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for index in indices:
            try:
                files, facts = _sample(dataset, index)
            except BadFile as error:
                if skipped is None:
                    raise UserError(str(error)) from None
                skipped.append(str(error))
                continue
            for name, path in files.items():
                ending = path.rpartition(".")[2].lower()
                field = f"{name}.{ending}" if name else ending
                _add(archive, f"{index:09}.{field}", read_bytes(path))
            _add(archive, f"{index:09}.json", json.dumps(facts, default=_plain).encode())
    os.replace(partial, tar)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))

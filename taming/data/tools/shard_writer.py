"""Writing the files of any dataset as they are into shards (see `taming.data.shards`)."""

from __future__ import annotations

import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from taming.atomic_files import atomic_path
from taming.data.base import ImageFiles, Item
from taming.data.checks import BadFile
from taming.data.file_versions import version_of
from taming.data.files.list_files import write_lines
from taming.data.files.shard_index import image_ending, read_index
from taming.data.files.tar_members import add_member, read_bytes
from taming.data.image_with_maps import ImagesWithMaps
from taming.data.shards import DESCRIPTION, read_description
from taming.data.whole_images import item_files
from taming.data.wrapping import changed_by, image_files_in
from taming.errors import UserError, interruptible

log = logging.getLogger(__name__)


def _sample(dataset: Any, index: int) -> tuple[dict[str, str], Item]:
    """Files and metadata of an item of a dataset that may wrap others; raises `BadFile`."""
    files, place, metadata = item_files(dataset, index)
    return files.files(place), metadata


@interruptible("finished shards stay, and the same command goes on with the rest")
def write_shards(dataset: Any, output: str | Path, per_shard: int, skip_bad: bool = False) -> int:
    """Write the dataset as `output/shard-000000.tar` and so on; returns how many samples they have.

    Shards that are there stay, so that an interrupted call can be repeated.

    Raises:
        UserError: if the dataset has no files, if the folder has shards of another size, and for
            files that cannot be used, unless `skip_bad` leaves them out with a warning for each.
    """
    source = next(image_files_in(dataset), None)
    if source is None:
        raise UserError(f"{type(dataset).__name__} has no image files that could go into shards")
    item_files(dataset, len(dataset) - 1)  # whether each item is known to be of a file
    if own := changed_by(dataset):
        log.warning("shards hold the files as they are; what %s does is not in them", own)
    folder = Path(output)
    _describe(folder, source, per_shard, len(dataset), files=version_of(dataset))
    starts = range(0, len(dataset), per_shard)
    bar = tqdm(starts, f"writing {folder}", unit=" shards", disable=None)
    skipped: list[str] = []
    samples = 0
    for number, start in enumerate(bar):
        tar = folder / f"shard-{number:06}.tar"
        if tar.is_file():
            samples += sum(1 for _ in read_index(str(tar)))
            continue
        indices, before = range(start, min(start + per_shard, len(dataset))), len(skipped)
        _write_tar(dataset, indices, tar, skipped if skip_bad else None)
        samples += len(indices) - (len(skipped) - before)
    for sentence in skipped:
        log.warning("skipped: %s", sentence)
    return samples


def _describe(folder: Path, source: ImageFiles, per_shard: int, count: int, *, files: str) -> None:
    maps = source.maps if isinstance(source, ImagesWithMaps) else {}
    content = {
        "maps": {name: maps.kind.describe() for name, maps in maps.items()},
        "interpolation": source.options.interpolation,
        "exif": source.options.exif,
        "value_range": source.options.value_range and list(source.options.value_range),
        "per_shard": per_shard,
        "samples": count,
        "files": files,
    }
    there = read_description(folder)
    # Those of earlier versions do not say which files they are of.
    if there is not None and {"files": files, **there} != content:
        raise UserError(f"{folder} has shards of other data or another size; give an empty folder")
    write_lines(folder / DESCRIPTION, [json.dumps(content, indent=2)])


def _write_tar(dataset: Any, indices: range, tar: Path, skipped: list[str] | None) -> None:
    """Write a shard; sentences about files that cannot be used go to `skipped`, if it is a list."""
    with (
        atomic_path(tar, advice="make room and run again") as partial,
        tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for index in indices:
            try:
                files, metadata = _sample(dataset, index)
            except BadFile as error:
                if skipped is None:
                    raise UserError(error.fatal()) from None
                skipped.append(str(error))
                continue
            for name, path in files.items():
                ending = image_ending(path)
                field = f"{name}.{ending}" if name else ending
                add_member(archive, f"{index:09}.{field}", _content(path))
            text = json.dumps(metadata, default=_plain)
            add_member(archive, f"{index:09}.json", text.encode())


def _content(path: str) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:  # or it would pass for an error of writing
        raise UserError(f"{path} cannot be read ({error}); replace or remove it") from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")

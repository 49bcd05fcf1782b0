"""Whether the files behind a dataset have changed, without reading them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from taming.data.files.tar_members import SEPARATOR, is_member
from taming.data.image_with_maps import ImagesWithMaps
from taming.data.wrapping import image_files_in
from taming.user_files import file_version

DESCRIPTIONS = (".json", ".csv", ".tsv", ".txt", ".npy")


def version_of(dataset: object, config: object = None) -> str:
    """SHA-256 of the paths, sizes and times of change of the files that a dataset reads.

    These are its images and their maps, also of datasets that wrap or join others, and, with the
    `config` of the dataset (plain values), the files that this names: lists, annotations. Of
    archives and databases it is the file's own. Absent files count as such.
    """
    digest = hashlib.sha256()
    archives: dict[str, tuple[int, int] | None] = {}  # each is asked for once
    for path in chain(_files_of(dataset), sorted(_named_files(config))):
        file = path.rpartition(SEPARATOR)[0] if is_member(path) else path
        if file == path:
            version = _version(path)
        elif (version := archives.get(file)) is None:
            version = archives[file] = _version(file)
        digest.update(f"{path}\0{version}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _files_of(dataset: object) -> Iterator[str]:
    for files in image_files_in(dataset):
        yield from files.paths
        for maps in files.maps.values() if isinstance(files, ImagesWithMaps) else ():
            yield from maps.paths


def _named_files(config: object) -> Iterator[str]:
    """Files that are named in a config, and those of named folders that are beside the images."""
    if isinstance(config, Mapping):
        config = list(config.values())
    if isinstance(config, Sequence) and not isinstance(config, str):
        for value in config:
            yield from _named_files(value)
    elif isinstance(config, str) and os.path.isdir(path := os.path.expanduser(config)):
        yield from _described_in(path)
    elif isinstance(config, str) and os.path.isfile(path := os.path.expanduser(config)):
        yield path


def _described_in(folder: str) -> Iterator[str]:
    """Annotations, lists and arrays in a folder: its images are known by the dataset."""
    for parent, below, names in os.walk(folder):
        if parent != folder:  # annotations are in a folder of their own, such as COCO's
            below.clear()
        yield from (os.path.join(parent, name) for name in names if name.endswith(DESCRIPTIONS))


def _version(path: str) -> tuple[int, int] | None:
    try:
        return file_version(path)
    except OSError:
        return None

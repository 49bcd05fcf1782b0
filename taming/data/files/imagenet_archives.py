"""ImageNet (ILSVRC2012) on disk: class folders, from official tars if need be, listed once.

Layout of a split, `${XDG_CACHE_HOME:-~/.cache}/autoencoders/data/ILSVRC2012_{train,validation}/`:
`data/<synset>/*.JPEG`, the official tar beside `data` while it is needed, `filelist.txt` with one
`<synset>/<name>` per line, and `.ready`, which says that both are complete.
"""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from taming.atomic_files import atomic_path, one_at_a_time, user_cache
from taming.data.columns import StringTable
from taming.data.files.find import JPEG_AND_PNG, find_images
from taming.data.files.list_files import read_pairs, unquoted, write_list
from taming.data.files.tar_members import require_plain
from taming.data.imagenet_classes import SYNSETS
from taming.errors import UserError, is_full
from taming.user_files import DAMAGED_ARCHIVE

log = logging.getLogger(__name__)
SYNSET_LIST = "validation_synset.txt"
UNFINISHED, LISTING = ".extracting", "filelist.txt"


@dataclass(frozen=True)
class Split:
    """Where a split's images are and come from."""

    name: str
    tar: str
    tar_of_tars: bool  # one tar per synset; otherwise flat, sorted by `SYNSET_LIST`
    maps_folder: str  # of this split below a folder of depth maps

    @property
    def root(self) -> Path:
        """The split's folder; the environment is asked each time."""
        return user_cache() / "autoencoders/data" / self.name


TRAIN = Split("ILSVRC2012_train", "ILSVRC2012_img_train.tar", True, "train")
VALIDATION = Split("ILSVRC2012_validation", "ILSVRC2012_img_val.tar", False, "val")


def prepare(split: Split, dataset: str) -> StringTable:
    """Names of the split's images, `<synset>/<name>`; unpacks and lists them the first time.

    Interrupted at any moment and called again, it goes on where it stopped. Of several processes
    one does it, and the others wait.

    Raises:
        UserError: if there is nothing to prepare, the tar is damaged, or a member's name leads to
            another folder.
    """
    if (names := _listed(split)) is not None:
        return names
    with one_at_a_time(split.root / ".lock"):
        names = _listed(split)  # by another process, meanwhile
        return _prepared(split, dataset) if names is None else names


def _listed(split: Split) -> StringTable | None:
    """The names that an earlier call has listed, if one has."""
    listing = split.root / LISTING
    if not ((split.root / ".ready").exists() and listing.is_file()):
        return None
    with open(listing, "rb") as lines:
        names = (os.fsdecode(line.rstrip(b"\r\n")) for line in lines if line.strip())
        return StringTable(map(unquoted, names))


def _prepared(split: Split, dataset: str) -> StringTable:
    _unpack(split, dataset)
    names = _list_images(split.root / "data", dataset)
    write_list(split.root / LISTING, names)
    (split.root / ".ready").touch()
    log.warning("%s: %s lists %d images", dataset, split.root / LISTING, len(names))
    return StringTable(names)


def _list_images(data: Path, dataset: str) -> list[str]:
    paths = find_images(data, JPEG_AND_PNG)
    names = sorted(Path(path).relative_to(data).as_posix() for path in paths)
    if flat := next((name for name in names if "/" not in name), None):
        raise UserError(
            f"{dataset}: {data / flat} is in no class folder; sort the images into one folder per "
            f"synset, or put the official tar (and {SYNSET_LIST} for validation) beside {data}"
        )
    if not names:
        raise UserError(f"{dataset}: {data} has no images; put folders of them there, one a synset")
    return names


def _unpack(split: Split, dataset: str) -> None:
    root, data, marker = split.root, split.root / "data", split.root / UNFINISHED
    if data.is_dir() and any(data.iterdir()) and not marker.exists():
        return  # the user's own class folders, or a link to them
    tar = root / split.tar
    if not tar.is_file():
        raise UserError(
            f"{dataset}: {root} has neither data/<synset>/*.JPEG nor {split.tar}; put the folder, "
            "a link to it, or the official tar there"
        )
    _check_end(tar)
    synsets = {} if split.tar_of_tars else _synsets_by_image(root / SYNSET_LIST, dataset)
    marker.touch()
    data.mkdir(exist_ok=True)
    try:
        with tarfile.open(tar, "r:") as archive:
            if split.tar_of_tars:
                _extract_nested(archive, data, tar)
            else:
                _extract(archive, data, tar, synsets)
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{tar} is no complete tar file ({error}); get it anew") from None
    except OSError as error:
        advice = "make room and run again" if is_full(error) else "run again when it can be"
        raise UserError(f"{tar} cannot be unpacked ({error}); {advice}") from None
    marker.unlink(missing_ok=True)  # another machine may have done the same


def _check_end(tar: Path) -> None:
    """Raise `UserError` if the tar does not end in two blocks of zeros.

    `tarfile` takes one that was cut short between two files for complete.
    """
    with open(tar, "rb") as raw:
        raw.seek(max(0, tar.stat().st_size - 1024))
        if raw.read().strip(b"\0") or tar.stat().st_size < 1024:
            raise UserError(f"{tar} is no complete tar file (its end is missing); get it anew")


def _plain_name(member: tarfile.TarInfo, tar: Path) -> str:
    """The member's name, if it is a file that lies directly in the folder it is unpacked to."""
    require_plain(member, tar)
    name = member.name.removeprefix("./")
    if not member.isreg() or name != os.path.basename(name) or name.startswith("."):
        raise UserError(
            f"{tar} holds {member.name!r}, which is no plain file of its folder; use the official "
            "tar"
        )
    return name


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it keeps every header it reads
        if not member.isdir():
            yield member


def _extract_nested(archive: tarfile.TarFile, data: Path, tar: Path) -> None:
    for member in tqdm(_members(archive), f"unpacking {tar.name}", unit=" classes", disable=None):
        folder = data / Path(_plain_name(member, tar)).stem
        inner = archive.extractfile(member)
        assert inner is not None  # a plain file
        with tarfile.open(fileobj=inner, mode="r:") as images:
            for image in _members(images):
                _extract_file(images, image, folder / _plain_name(image, tar))


def _extract(archive: tarfile.TarFile, data: Path, tar: Path, synsets: dict[str, str]) -> None:
    for member in tqdm(_members(archive), f"unpacking {tar.name}", unit=" images", disable=None):
        name = _plain_name(member, tar)
        if name not in synsets:
            raise UserError(f"{tar.parent / SYNSET_LIST} lacks {name}, which is in {tar.name}")
        _extract_file(archive, member, data / synsets[name] / name)


def _extract_file(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write one member, unless an earlier call has written it."""
    if target.is_file() and target.stat().st_size == member.size:
        return
    source = archive.extractfile(member)
    assert source is not None  # a plain file
    with atomic_path(target, advice="make room and run again") as partial, open(partial, "wb") as f:
        shutil.copyfileobj(source, f, 1 << 20)


def _synsets_by_image(file: Path, dataset: str) -> dict[str, str]:
    """From lines `<image> <synset>`, or `<image> <class number 0-999>`."""
    if not file.is_file():
        raise UserError(
            f"{dataset}: {file} does not exist; the validation tar needs it to sort its images "
            "into class folders: one line 'ILSVRC2012_val_00000001.JPEG n01751748' per image (or "
            "the class number, 0 to 999, in place of the synset)"
        )
    return read_pairs(file, "image synset", _synset)


def _synset(word: str) -> str | None:
    if word.isdecimal() and int(word) < len(SYNSETS):
        return SYNSETS[int(word)]
    return word if word[:1] == "n" and word[1:].isdecimal() and len(word) == 9 else None

"""The published models: their addresses, and downloading them into `logs/`.

Addresses are files, or shared folders of a Seafile server, which lists what is in them.
"""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from taming.atomic_files import atomic_path, write_text
from taming.checkpoint import find_run, read_checkpoint
from taming.checkpoint.own_configs import own_configs
from taming.checkpoint.recognition import model_of_weights
from taming.downloads import TIMEOUT, Patience, fetch, file_hash
from taming.errors import UserError
from taming.models.dalle import convert
from taming.published_models import (
    RECORD,
    Published,
    has_begun,
    published_models,
    read_record,
)
from taming.user_files import DAMAGED_ARCHIVE, YAMLS

__all__ = [
    "Published",
    "RemoteFile",
    "download_model",
    "is_downloaded",
    "lacks_config",
    "published_models",
    "remote_files",
]

CHECKPOINT = "checkpoints/last.ckpt"
MOST_GROWTH = 4  # of an archive that is unpacked
WEIGHTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
WANTED = (*WEIGHTS, *YAMLS, ".pkl", ".zip")
_UNPACKED = (".ckpt", *YAMLS)  # of archives

Resolve = Callable[[str], "list[RemoteFile]"]


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: where to put it, relative to the model's folder, and its size if known."""

    url: str
    path: str
    size: int | None = None


# ---------------------------------------------------------------------- addresses -> files


def remote_files(address: str) -> list[RemoteFile]:
    """The files of an address: the file itself, or those of a shared folder that a run needs."""
    drive = re.match(r"(https?://)drive\.google\.com/file/d/([\w-]+)", address)
    if drive:
        query = urllib.parse.urlencode({"id": drive[2], "export": "download", "confirm": "t"})
        return [RemoteFile(f"{drive[1]}drive.usercontent.google.com/download?{query}", CHECKPOINT)]
    name = address.rsplit("/", 1)[-1]
    if name.endswith(WANTED):
        return [RemoteFile(address, name)]
    with _open(address) as response:  # follows redirects
        final = response.url
    folder = re.match(r"(https?://[^/]+)/d/(\w+)", final)
    if folder:
        return _in_run_layout(_shared_files(folder[1], folder[2]))
    if re.match(r"https?://[^/]+/f/\w+", final):
        final = final.split("?")[0] + "?dl=1"
    return [RemoteFile(final, CHECKPOINT)]


def _open(url: str) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "taming-transformers"})
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except (OSError, ValueError) as error:
        raise UserError(f"{url} cannot be reached: {error}") from None


def _shared_files(server: str, token: str, folder: str = "/") -> list[RemoteFile]:
    """The files of a shared Seafile folder that a run needs, below `folder`."""
    query = urllib.parse.urlencode({"path": folder})
    with _open(f"{server}/api/v2.1/share-links/{token}/dirents/?{query}") as response:
        try:
            entries = list(json.load(response)["dirent_list"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{server}/d/{token}/ does not list its files as expected") from None
    files: list[RemoteFile] = []
    for entry in entries:
        if entry["is_dir"]:
            files += _shared_files(server, token, entry["folder_path"])
        elif entry["file_path"].endswith(WANTED):
            where = urllib.parse.urlencode({"p": entry["file_path"], "dl": 1})
            path = entry["file_path"].lstrip("/")
            files.append(RemoteFile(f"{server}/d/{token}/files/?{where}", path, entry.get("size")))
    return files


def _in_run_layout(files: list[RemoteFile]) -> list[RemoteFile]:
    """The files with paths relative to the parent of `checkpoints` (`ckpts` on some servers)."""
    paths = [re.sub(r"(^|/)ckpts/", r"\1checkpoints/", file.path) for file in files]
    above = [path.partition("checkpoints/")[0] for path in paths if "checkpoints/" in path]
    paths = [path.removeprefix(min(above, key=len, default="")) for path in paths]
    return [RemoteFile(f.url, path, f.size) for f, path in zip(files, paths, strict=True)]


# ---------------------------------------------------------------------- files -> a run folder


def download_model(
    model: Published,
    root: str | Path = ".",
    *,
    check: bool = False,
    patience: Patience | None = None,
    resolve: Resolve = remote_files,
) -> Path:
    """Fetch what is missing of a model into `root`; returns its folder.

    Hashes are recorded at a file's first download; with `check`, present files are compared to
    them.

    Raises:
        UserError: if a file cannot be fetched, or is no checkpoint or another than at first.
    """
    folder = Path(root) / model.folder
    record = read_record(folder)
    files = record["files"]
    for path, known in files.items():
        _check_present(folder / path, known, check)
    if record["complete"] and all((folder / path).is_file() for path in files):
        return _converted(folder)
    for address in model.addresses:
        for file in resolve(address):
            files |= _download_file(file, folder, files, patience)
            _write_record(folder, record)
    _add_config(model.name, folder)
    _converted(folder)
    _write_record(folder, {**record, "complete": True})
    return folder


def _converted(folder: Path) -> Path:
    """The folder, in which DALL-E's pickles have become a checkpoint."""
    if (folder / "encoder.pkl").is_file() and not (folder / "model.ckpt").is_file():
        convert(folder)
    return folder


def is_downloaded(model: Published, root: str | Path = ".") -> bool:
    """Whether a model is ready to use below `root`: fetched as a whole, or put there by hand."""
    folder = Path(root) / model.folder
    if has_begun(folder):
        return False
    try:
        return find_run(folder).checkpoint.is_file()
    except UserError:
        return False


def _add_config(name: str, folder: Path) -> None:
    """Give a model that is published as a checkpoint alone the config it was trained with."""
    config = resources.files("taming").joinpath("pretrained_configs", f"{name}.yaml")
    if config.is_file() and lacks_config(folder):
        write_text(folder / "config.yaml", config.read_text("utf-8"))


def lacks_config(folder: Path) -> bool:
    """Whether a downloaded model has no config, neither its own nor one of this package, and its
    tensors do not tell what it is."""
    if own_configs(folder):
        return False
    try:
        if not (run := find_run(folder)).configs:
            model_of_weights(run.checkpoint)
    except UserError:
        return True
    return False


def _check_present(path: Path, known: dict[str, Any], thoroughly: bool) -> None:
    if not path.is_file():
        return
    wrong = path.stat().st_size != known["size"]
    if wrong or (thoroughly and file_hash(path) != known["sha256"]):
        raise UserError(f"{path} is not the file that was downloaded; delete it to fetch it again")


def _download_file(
    file: RemoteFile, folder: Path, files: Mapping[str, Any], patience: Patience | None
) -> dict[str, Any]:
    """Fetch, check and place one file, or the files of an archive: entries of the record."""
    target = _inside(folder, file.path)
    known = files.get(file.path)
    if target.is_file() and known is not None:
        return {}
    unchecked = target.with_name(target.name + ".arrived")
    fetch(file.url, unchecked, size=file.size, patience=patience)
    try:
        _verify(unchecked, file, known)
        if _is_archive(unchecked):
            placed = _unpack(unchecked, folder)
        else:
            placed = {file.path: unchecked.replace(target)}
    finally:
        unchecked.unlink(missing_ok=True)
    return {
        path: {"url": file.url, "size": place.stat().st_size, "sha256": file_hash(place)}
        for path, place in placed.items()
    }


def _inside(folder: Path, path: str) -> Path:
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"the server names a file outside the model's folder ({path}); refused")
    return target


def _verify(unchecked: Path, file: RemoteFile, known: dict[str, Any] | None) -> None:
    """Refuse web pages, damaged checkpoints and files that changed since the first download."""
    if known is not None and file_hash(unchecked) != known["sha256"]:
        raise UserError(
            f"{file.url} now sends another file than at the first download; delete {RECORD} in the "
            "model's folder if that is right"
        )
    with unchecked.open("rb") as opened:
        start = opened.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise UserError(
            f"{file.url} sends a web page instead of {file.path}; fetch it with a browser and put "
            "it there"
        )
    if file.path.endswith(WEIGHTS) and not _is_archive(unchecked):
        read_checkpoint(unchecked)


def _is_archive(path: Path) -> bool:
    """Whether a file is a zip with a model in it; checkpoints are zips too, with a data.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(name.endswith("data.pkl") for name in archive.namelist())


def _unpack(archive_path: Path, folder: Path) -> dict[str, Path]:
    """Put an archive's checkpoints and configs into `folder`: path in the archive -> file."""
    placed: dict[str, Path] = {}
    with _damage_named(archive_path), zipfile.ZipFile(archive_path) as archive:
        wanted = [entry for entry in archive.infolist() if entry.filename.endswith(_UNPACKED)]
        _check_claims(archive_path, sum(entry.file_size for entry in wanted))
        for entry in wanted:
            placed[entry.filename] = _inside(folder, entry.filename)
            with atomic_path(placed[entry.filename]) as partial, partial.open("wb") as target:
                with archive.open(entry) as source:  # gives no more than the entry claims
                    shutil.copyfileobj(source, target)
    if not placed:
        raise UserError(f"{archive_path.name}: there is no checkpoint in the archive")
    return placed


def _check_claims(archive: Path, claimed: int) -> None:
    """Weights hardly get smaller when compressed; zeros become a thousandth."""
    packed = archive.stat().st_size
    if claimed > MOST_GROWTH * packed + 2**20:
        raise UserError(
            f"{archive.name} of {packed / 2**20:.1f} MiB says that it holds {claimed / 2**30:.2f} "
            "GiB, which no archive of weights does; it is not unpacked"
        )


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{archive.name} is no archive that can be unpacked: {error}") from None


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")

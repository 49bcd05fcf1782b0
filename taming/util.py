"""Downloads and nested look-ups."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taming.atomic_files import atomic_path
from taming.downloads import fetch, file_hash
from taming.errors import UserError

# Checkpoints by name: where they come from, their file, and its MD5.
URL_MAP = {"vgg_lpips": "https://heibox.uni-heidelberg.de/f/607503859c864bc1b30b/?dl=1"}
CKPT_MAP = {"vgg_lpips": "vgg.pth"}
MD5_MAP = {"vgg_lpips": "d507d7349b931f0638a25a48a722f98a"}  # the calibrated layers for VGG16


def download(url: str, local_path: str | os.PathLike[str], chunk_size: int = 1024) -> None:
    """Fetch `url` to `local_path`, in chunks of `chunk_size` bytes, with a progress bar.

    The file appears only once it is complete; a call after a failed one continues it.
    """
    fetch(url, local_path, chunk_size=chunk_size)


def md5_hash(path: str | os.PathLike[str]) -> str:
    """The MD5 of a file, as 32 hexadecimal digits."""
    return file_hash(path, "md5")


def get_ckpt_path(name: str, root: str | os.PathLike[str], check: bool = False) -> str:
    """The path of a checkpoint of `URL_MAP` below the folder `root`.

    It is fetched if missing or, with `check`, if damaged; "vgg_lpips", the calibrated layers of
    LPIPS, comes from the installed package `lpips`.
    """
    if name not in URL_MAP:
        names = " and ".join(URL_MAP)
        raise UserError(f"there is no checkpoint named {name}; there is {names}")
    path = Path(root) / CKPT_MAP[name]
    if path.is_file() and not (check and md5_hash(path) != MD5_MAP[name]):
        return str(path)
    if name == "vgg_lpips":
        with atomic_path(path) as partial:
            shutil.copyfile(lpips_file("vgg"), partial)
        return str(path)
    download(URL_MAP[name], path)
    if (found := md5_hash(path)) != MD5_MAP[name]:
        raise UserError(f"{path} has the MD5 {found} instead of {MD5_MAP[name]}; delete it")
    return str(path)


def lpips_file(net: str) -> Path:
    """The calibrated layers of LPIPS 0.1 for "vgg" or "alex", in the installed package `lpips`."""
    package = find_spec("lpips")  # located, not imported: its import takes seconds
    if package is None or package.origin is None:
        raise UserError(
            "LPIPS needs the calibrated layers of the package `lpips`: pip install lpips"
        )
    return Path(package.origin).parent / "weights" / "v0.1" / f"{net}.pth"


class KeyNotFoundError(Exception):
    """`retrieve` found no such key; `keys` is its path, `visited` how far it got."""

    def __init__(
        self, cause: object, keys: list[str] | None = None, visited: list[str] | None = None
    ) -> None:
        self.cause, self.keys, self.visited = cause, keys, visited
        where = "" if keys is None else f"{'/'.join(keys)}: "
        reached = "" if visited is None else f" (found up to {'/'.join(visited) or 'the root'})"
        super().__init__(f"{where}{cause}{reached}")


def _descend(node: Any, keys: list[str], expand: bool) -> Any:
    for depth, key in enumerate(keys):
        if callable(node):
            raise KeyNotFoundError("a callable is in the way, and expand=False", keys, keys[:depth])
        try:
            named = isinstance(node, Mapping) and (key in node or not key.isdigit())
            place = key if named else int(key)
            child = node[place]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise KeyNotFoundError(error, keys, keys[:depth]) from error
        while callable(child) and expand:
            child = node[place] = child()
        node = child
    return node


def retrieve(
    list_or_dict: Any,
    key: str,
    splitval: str = "/",
    default: Any = None,
    expand: bool = True,
    pass_success: bool = False,
) -> Any:
    """The entry at path `key` of nested dicts and lists, e.g. "model/layers/0".

    Callables on the way are called and replaced by their result, unless `expand` is off. Without
    `default`, a missing entry raises KeyNotFoundError. `pass_success` returns (entry, found).
    """
    try:
        value, success = _descend(list_or_dict, key.split(splitval), expand), True
    except KeyNotFoundError:
        if default is None:
            raise
        value, success = default, False
    return (value, success) if pass_success else value

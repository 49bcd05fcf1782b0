"""Checkpoints whose sharded tensors are in files of their own, written by all processes.

The checkpoint is a file like any other, of which they take the place only by their shape, on the
device "meta", and which names their folder:

    checkpoints/last.ckpt                         counters, the frozen stages' weights, ...
    checkpoints/shards/step=000010/__0_0.distcp   the first process's share of the others
    checkpoints/shards/step=000010/.metadata      which part of which tensor is where
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taming.checkpoint.checksum import DamagedFileError
from taming.errors import UserError
from taming.shipped import script

SHARDS = "shards"  # the entry of a checkpoint, and the folder beside it
JOIN = script("consolidate")


def replaced(content: Any, new: Callable[[str, Tensor], Tensor], place: str = "") -> Any:
    """A copy of nested dicts and lists with `new(place, tensor)` for each tensor in it.

    Places are such as `optimizer_states.0.state.5.exp_avg`.
    """
    if isinstance(content, Tensor):
        return new(place, content)
    head = f"{place}." if place else ""
    if isinstance(content, Mapping):
        return {key: replaced(value, new, f"{head}{key}") for key, value in content.items()}
    if isinstance(content, list):
        return [replaced(value, new, f"{head}{n}") for n, value in enumerate(content)]
    return content


def split(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint with the shapes of its sharded tensors alone, and these by their places."""
    from taming.sharding import is_sharded  # takes half a second, for few runs

    sharded: dict[str, Tensor] = {}

    def shape_of(place: str, tensor: Tensor) -> Tensor:
        if not is_sharded(tensor):
            return tensor
        sharded[place] = tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    return replaced(content, shape_of), sharded


def described(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its shards."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return {"folder": f"{SHARDS}/{folder.name}", "files": sizes}


def has_shards(content: Any) -> bool:
    """Whether a checkpoint's content has a part of its tensors in shards."""
    return isinstance(content, Mapping) and isinstance(content.get(SHARDS), Mapping)


def require_whole(content: Any, path: object) -> None:
    """Refuse (`UserError`) a checkpoint in shards, where its weights are needed."""
    if has_shards(content):
        raise UserError(f"{path} has its weights in shards: join them with {JOIN} {path}")


def folder_of(content: Mapping[str, Any], path: Path) -> Path:
    """The folder of a checkpoint's shards.

    Raises:
        DamagedFileError: if one is missing, or not as long as it was.
    """
    folder = path.parent / SHARDS / Path(str(content[SHARDS].get("folder"))).name
    for name, size in dict(content[SHARDS].get("files") or {}).items():
        file = folder / Path(str(name)).name
        if not file.is_file() or file.stat().st_size != size:
            state = "cut short" if file.is_file() else "missing"
            raise DamagedFileError(f"{path} needs its shard {file}, which is {state}")
    return folder


def filled(
    content: Mapping[str, Any], path: Path, like: Callable[[str], Tensor | None] | None = None
) -> dict[str, Any]:
    """A checkpoint with the tensors in its shards read: each whole, or divided among the processes
    as the tensor is that `like(place)` gives for it; without one it stays out."""
    from taming.sharding import load_shards

    targets: dict[str, Tensor] = {}

    def target(place: str, tensor: Tensor) -> Tensor:
        own = torch.empty_like(tensor, device="cpu") if like is None else like(place)
        if not tensor.is_meta or own is None:
            return tensor
        targets[place] = torch.empty_like(own)
        return targets[place]

    new: dict[str, Any] = replaced(content, target)
    load_shards(targets, folder_of(content, path))
    del new[SHARDS]
    return new


def remove_unused(folder: Path, used: set[str]) -> None:
    """Remove the shards beside the checkpoints of a folder, but those `used`, by their names."""
    for shards in (folder / SHARDS).glob("*"):
        if f"{SHARDS}/{shards.name}" not in used:
            shutil.rmtree(shards, ignore_errors=True)
    with suppress(OSError):
        (folder / SHARDS).rmdir()  # an empty one

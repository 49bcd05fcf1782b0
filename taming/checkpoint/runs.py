"""Runs on disk: which checkpoint and which configs a path names."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from taming.checkpoint import hub
from taming.checkpoint.checksum import DamagedFileError, has_checksum
from taming.checkpoint.file_kinds import what_folder
from taming.checkpoint.formats import (
    is_mapped,
    read_checkpoint,
    read_content,
    shards_with,
    stands_alone,
)
from taming.checkpoint.hub_names import HubName, fetch, is_hub_name
from taming.checkpoint.own_configs import own_configs
from taming.checkpoint.weight_sets import say
from taming.distributed import is_first_process
from taming.errors import UserError
from taming.published_models import how_to_fetch, located, published_models
from taming.user_files import YAMLS, visible_in, with_home
from taming.weight_choice import RAW, weight_choice

log = logging.getLogger(__name__)

# Where a run, or a download of one, has the checkpoint to use.
_CHECKPOINTS: tuple[str, ...] = (
    "checkpoints/last.ckpt",
    "last.ckpt",
    "checkpoints/model.ckpt",
    "model.ckpt",
)
_ENDINGS = (".ckpt", ".pt", ".pth", ".safetensors", ".bin", ".npz")


@dataclass(frozen=True)
class Run:
    """A training run on disk: its folder, the checkpoint to use, and its configs in merge order.

    `model` is the merged config's section, without paths of checkpoints, once it is loaded.
    """

    folder: Path
    checkpoint: Path
    configs: tuple[Path, ...]
    model: Mapping[str, Any] | None = None


def find_run(path: str | Path) -> Run:
    """The run that `path` names: its folder, the folder `checkpoints` in it, or a checkpoint.

    `hf:owner/name[@revision]` is a model on the hub, which is fetched; files that are made with it
    go to logs/. The name of a published model is its folder in logs/, once it has been downloaded.
    Such downloads may have `model.ckpt` and `config.yaml` instead,
    folders of hubs `model.safetensors` (or its shards) and `config.json`. Of a folder, the newest
    checkpoint that is whole is used, with a warning if `last.ckpt` is damaged.

    Raises:
        UserError: if there is no such run (the nearest name is given), or no checkpoint in it.
    """
    if is_hub_name(path):
        return find_on_hub(path)
    path = located(normal_path(path))
    if not path.exists():
        names = published_models() if len(path.parts) == 1 else ()
        hint = how_to_fetch(path) or did_you_mean_run(path, names)
        raise UserError(f"there is no run or checkpoint at {path}{hint}")
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is neither a file nor a folder, but a device or a pipe")
    path = hub.snapshot_in(path)
    if path.suffix in YAMLS:
        raise UserError(f"{path} is a config, not a run or checkpoint")
    if path.is_file() and _may_be_damaged(path) and not is_mapped(path):
        read_content(path)  # says what it is, before what is beside it is taken for its config
    folder = run_folder_of(path)
    named = path.is_file()
    checkpoint = path if named else _checkpoint_in(folder)
    return Run(folder, checkpoint, tuple(own_configs(folder, checkpoint, named)))


class Weights(Enum):
    """Which weights a place has for `find_run`."""

    NONE = 0
    LOOSE = 1  # in a folder: files of any names, as may be among images
    RUN = 2


def weights_at(path: str | Path) -> Weights:
    """Whether there is a run, a download of one, a hub's folder or a file, or its name.

    It is said by names alone: `find_run` may still refuse what they hold.
    """
    if is_model_name(path):
        return Weights.RUN
    place = hub.snapshot_in(located(normal_path(path)))
    if place.is_file() or (place / "checkpoints").is_dir() or any(place.glob("*.ckpt")):
        return Weights.RUN
    if any((place / name).is_file() for name in (*_CHECKPOINTS, *hub.WEIGHTS)):
        return Weights.RUN
    return Weights.LOOSE if _loose(place) else Weights.NONE


def is_model_name(path: str | Path) -> bool:
    """Whether `path` is the name of a model, on the hub or published, rather than a place."""
    return is_hub_name(path) or (str(path) in published_models() and not Path(path).exists())


def find_on_hub(path: str | Path, *, cached_only: bool = False) -> Run:
    """The model that `path`, `hf:owner/name[@revision]`, names, fetched unless `cached_only`.

    Raises:
        UserError: if it cannot be fetched, or has no weights as safetensors.
    """
    name = HubName.parse(path)
    weights = fetch(name, cached_only=cached_only)
    return Run(name.folder, _averaged(weights), tuple(own_configs(weights.parent, weights)))


def find_unsaved(path: str | Path) -> tuple[Path, tuple[Path, ...]] | None:
    """Folder and configs of a run that was stopped before its first save; None of any other."""
    path = normal_path(path)
    folder = run_folder_of(path)
    begun = path.is_dir() and any(folder.glob("configs/*-project.yaml"))
    return (
        (folder, tuple(own_configs(folder))) if begun and not any(folder.rglob("*.ckpt")) else None
    )


def normal_path(path: str | Path) -> Path:
    """`path` with `~` replaced; the current folder and those above it by their names."""
    path = Path(os.path.normpath(with_home(Path(path))))
    return Path(os.path.abspath(path)) if path.name in ("", "..") else path


def name_of(run: str, runs: Iterable[str] = ()) -> str:
    """What a run is called among `runs`: its folder, with the way to it if others are called so."""
    short = Path(run).name or run
    same = [other for other in runs if (Path(other).name or other) == short]
    return short if len(same) < 2 else run


def distinct_name(run: Run, taken: Collection[str] = ()) -> str:
    """What a run is called beside others: as its folder, or as a lone file; if that is `taken`,
    with the checkpoint's name, and a number if that is taken as well."""
    name = run.folder.resolve().name if run.configs else run.checkpoint.stem
    if name in taken:
        name = f"{name} {run.checkpoint.stem}"
    copies = sum(other == name or other.startswith(f"{name} (") for other in taken)
    return f"{name} ({copies + 1})" if copies else name


def run_folder_of(path: Path) -> Path:
    """The folder of the run that a checkpoint, or the folder of checkpoints, belongs to."""
    folder = path.parent if path.is_file() else path
    if folder.absolute().name != "checkpoints":
        return folder
    return normal_path((folder if folder.name else folder.absolute()).parent)


def _checkpoint_in(folder: Path) -> Path:
    for name in (*_CHECKPOINTS, *hub.preferred([path.name for path in visible_in(folder)])):
        if (folder / name).is_file():
            return _newest_whole(_averaged(folder / name))
    checkpoints = folder / "checkpoints"
    if whole := sorted(_whole(visible_in(checkpoints, "*.ckpt"))):
        return checkpoints / whole[-1][2]  # killed in its first save, after one of two names
    weights = _loose(folder)
    if len(weights) == 1:
        return weights[0]
    shards = {path: set(shards_with(path)) for path in weights}
    first = next((path for path in sorted(weights) if shards[path] == set(weights)), None)
    if first is not None and not stands_alone(first):
        return first
    raise UserError(f"{folder} {what_folder(folder, [path.name for path in weights])}")


def _loose(folder: Path) -> list[Path]:
    return [path for path in visible_in(folder) if path.suffix in _ENDINGS and path.is_file()]


def _averaged(weights: Path) -> Path:
    """The file beside one with weights that has their moving average, unless there is none or
    `--weights raw` asks for the first one."""
    name = f"{weights.stem}_ema{weights.suffix}"
    average = weights.with_name(name)
    if weights.name not in hub.WEIGHTS or not average.is_file() or weight_choice().kind == RAW:
        return weights
    say(str(average), (f"the moving average of {weights.name} (--weights raw takes that)",))
    return average


def _newest_whole(last: Path) -> Path:
    """`last`, or another checkpoint beside it: one that is newer, or whole while it is not.

    A run that is killed may have written the file of an epoch, and not yet `last.ckpt`.

    Raises:
        DamagedFileError: if `last` is damaged, and there is none that is whole.
    """
    others = [path for path in visible_in(last.parent, "*.ckpt") if path != last]
    if not _may_be_damaged(last):
        return last
    try:
        step = _step(last)
    except DamagedFileError:
        whole = sorted(_whole(others), reverse=True)
        if not whole:
            raise
        step, _, name = whole[0]
        _warn_of_damage(last, last.parent / name, step, last.stat().st_mtime_ns)
        return last.parent / name
    written = last.stat().st_mtime_ns
    newer = [path for path in others if path.stat().st_mtime_ns > written]
    later = [found for found in _whole(newer) if found[0] > step]
    return last.parent / max(later)[2] if later else last


def _may_be_damaged(path: Path) -> bool:
    """False of files of torch before 1.6, which would be read as a whole."""
    with path.open("rb") as file:
        return file.read(1) != b"\x80" or has_checksum(path)


def _whole(paths: Iterable[Path]) -> Iterator[tuple[int, int, str]]:
    """(step, time of writing, name) of those checkpoints that are whole."""
    for path in filter(Path.is_file, paths):
        try:
            yield _step(path), path.stat().st_mtime_ns, path.name
        except UserError:  # damaged, or somebody's without weights
            continue


def _step(path: Path) -> int:
    return int(read_checkpoint(path).get("global_step") or 0)


@lru_cache  # a command may look for a run more than once
def _warn_of_damage(damaged: Path, whole: Path, step: int, version: int) -> None:
    if is_first_process():
        text = "%s is damaged: using %s (step %d), the newest checkpoint that is whole"
        log.warning(text, damaged, whole, step)


def runs_in(folder: Path) -> list[Path]:
    """The folders in `folder` that have a checkpoint, by name."""
    return sorted(
        run for run in folder.glob("*") if any((run / name).is_file() for name in _CHECKPOINTS)
    )


def did_you_mean_run(path: str | Path, other_names: Iterable[str] = ()) -> str:
    """`"; did you mean 'logs/y'?"` for the run most like a `path` that does not exist, or "".

    Runs in the same folder and in logs/ are compared by name, with and without the time at which
    they began; `other_names` stand for themselves.
    """
    missing = Path(path)
    while not missing.parent.exists():
        missing = missing.parent
    names = {name: name for name in other_names}
    for folder in dict.fromkeys((Path("logs"), missing.parent)):
        for run in runs_in(folder):
            names |= {re.sub(r"^[\dT:-]+_", "", run.name): str(run), run.name: str(run)}
    close = difflib.get_close_matches(missing.name, names, n=1)
    return f"; did you mean '{names[close[0]]}'?" if close else ""

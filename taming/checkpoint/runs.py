"""Runs on disk: which checkpoint and which configs a path names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from taming.errors import UserError

# Where a run, or a download of one, has the checkpoint to use.
_CHECKPOINTS = ("checkpoints/last.ckpt", "last.ckpt", "checkpoints/model.ckpt", "model.ckpt")


@dataclass(frozen=True)
class Run:
    """A training run on disk: its folder, the checkpoint to use, and its configs in merge order."""

    folder: Path
    checkpoint: Path
    configs: tuple[Path, ...]


def find_run(path: str | Path) -> Run:
    """The run that `path` names: a folder with `checkpoints/last.ckpt`, or a checkpoint.

    Downloads of published models may have `model.ckpt` and `config.yaml` instead.

    Raises:
        UserError: if there is no such run (the nearest name is given), or no checkpoint in it.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no run or checkpoint at {path}{did_you_mean_run(path)}")
    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"{path} is a config, not a run or checkpoint")
    folder = _folder_of_checkpoint(path) if path.is_file() else path
    usual = [folder / name for name in _CHECKPOINTS if (folder / name).is_file()]
    if path.is_dir() and not usual:
        raise UserError(_no_last_checkpoint(folder))
    checkpoint = path if path.is_file() else usual[0]
    return Run(folder, checkpoint, tuple(_configs(folder)))


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
        for run in folder.glob("*"):
            if any((run / name).is_file() for name in _CHECKPOINTS):
                names |= {re.sub(r"^[\dT:-]+_", "", run.name): str(run), run.name: str(run)}
    close = difflib.get_close_matches(missing.name, names, n=1)
    return f"; did you mean '{names[close[0]]}'?" if close else ""


def _folder_of_checkpoint(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def _no_last_checkpoint(folder: Path) -> str:
    others = sorted(folder.glob("checkpoints/*.ckpt"))
    if others:
        return (
            f"{folder} has no checkpoints/last.ckpt; pass one of its checkpoints, say {others[-1]}"
        )
    return (
        f"{folder} holds no checkpoints/last.ckpt: it is no run, or stopped before its first save"
    )


def _configs(folder: Path) -> list[Path]:
    """Configs from the oldest to the newest, which wins in a merge; each start writes a pair."""
    configs = folder / "configs"
    project = sorted(configs.glob("*-project.yaml"))
    if project:
        return sorted(configs.glob("*-lightning.yaml")) + project
    return sorted(configs.glob("*.yaml")) or sorted(folder.glob("*.yaml"))

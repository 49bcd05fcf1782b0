"""Files become weights: the only way in. Nothing that a checkpoint contains is ever executed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from taming.checkpoint_fit import groups, misfit
from taming.checkpoint_formats import read_checkpoint
from taming.config import instantiate_from_config, load_config, without_checkpoint_paths
from taming.errors import UserError

__all__ = ["Run", "find_run", "load_run", "load_weights", "read_checkpoint", "run_config"]
__all__ += ["save_atomic"]

log = logging.getLogger(__name__)

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

    Raises `UserError` where there is no such run or no checkpoint in it.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no run or checkpoint at {path}")
    folder = _folder_of_checkpoint(path) if path.is_file() else path
    there = [folder / name for name in _CHECKPOINTS if (folder / name).is_file()]
    if path.is_dir() and not there:
        raise UserError(_no_last_checkpoint(folder))
    checkpoint = path if path.is_file() else there[0]
    return Run(folder, checkpoint, tuple(_configs(folder)))


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
    """Configs by time; each resume wrote a pair of them, and the newest wins in a merge."""
    configs = folder / "configs"
    project = sorted(configs.glob("*-project.yaml"))
    if project:
        return sorted(configs.glob("*-lightning.yaml")) + project
    return sorted(configs.glob("*.yaml")) or sorted(folder.glob("*.yaml"))


def run_config(
    run: Run, base: Sequence[str | Path] = (), overrides: Sequence[str] = ()
) -> DictConfig:
    """The config that a run was trained with, `base` and `overrides` merged over it."""
    if not run.configs and not base:
        raise UserError(f"{run.folder} has no configs/*-project.yaml; name its YAML with --base")
    config = load_config([*run.configs, *base], overrides)
    if "model" not in config:
        raise UserError(f"the configs of {run.folder} have no 'model' section")
    return config


def load_run(
    path: str | Path, base: Sequence[str | Path] = (), overrides: Sequence[str] = ()
) -> tuple[nn.Module, Run, int]:
    """Build the model of a run and load its weights: `(model in eval mode, run, global step)`.

    `base` are further YAMLs merged over the run's own; they may replace them for a lone checkpoint.
    Weights stay in the file until they are used, so the model takes its size in memory once.
    """
    run = find_run(path)
    config = without_checkpoint_paths(run_config(run, base, overrides).model)
    checkpoint = read_checkpoint(run.checkpoint)
    with _LargeTensorsUnset():
        model = instantiate_from_config(config, key="model")
    state = checkpoint["state_dict"]
    if load_weights(model, state, source=run.checkpoint, assign=True):
        model = instantiate_from_config(config, key="model")  # what it lacks needs initial values
        load_weights(model, state, source=run.checkpoint, assign=True)
    return model.eval(), run, int(checkpoint.get("global_step") or 0)


class _LargeTensorsUnset(TorchFunctionMode):
    """Leaves large tensors without their random initial values, which loading would overwrite.

    Memory that nothing is written to is not taken from the machine.
    """

    LARGE = 2**16
    FILLS = (
        Tensor.normal_,
        Tensor.uniform_,
        nn.init.kaiming_uniform_,
        nn.init.normal_,
        nn.init.trunc_normal_,
        nn.init.uniform_,
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.numel() > self.LARGE:
                return tensor
        return func(*args, **kwargs)


def load_weights(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    source: str | Path = "the checkpoint",
    ignore_keys: Iterable[str] = (),
    optional: Sequence[str] = ("loss.",),
    assign: bool = False,
) -> list[str]:
    """Put `state_dict` into `module`; returns the names that kept their initial values.

    Keys that start with one of `ignore_keys` are dropped. Names with a part in `optional` (the
    losses, which only training needs) may be missing or in excess; any other difference is a
    `UserError`, as the model would not be the one that was saved.

    With `assign` the module's parameters and buffers stay the objects that they are, but take the
    memory of `state_dict` instead of a copy, wherever device, dtype and layout agree. It is for
    tensors that nobody else uses, such as those just read from a file: pages of the file then serve
    as memory until they are written to, and writing changes the process's own memory alone. A file
    in use may be replaced or deleted, but not overwritten in place.
    """
    ignored = tuple(ignore_keys)
    kept = {k: v for k, v in state_dict.items() if not k.startswith(ignored)}
    own = module.state_dict(keep_vars=True)
    missing = sorted(own.keys() - kept.keys())
    needed = {name: tensor for name, tensor in own.items() if not name.startswith(ignored)}
    check_fit(needed, kept, source=source, optional=optional)
    fitting = {name: kept[name] for name in own if name in kept}
    if assign:
        _take_memory(own, fitting)
    module.load_state_dict(fitting, strict=False)  # copies, where the memory is not the same
    for line in groups(missing, "not in the checkpoint or ignored: initialised anew"):
        log.info("%s: %s", source, line)
    for line in groups(sorted(kept.keys() - own.keys()), "in excess: left out"):
        log.info("%s: %s", source, line)
    return missing


def check_fit(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    *,
    source: str | Path,
    optional: Sequence[str] = (),
) -> None:
    """Raise a `UserError` unless tensors `given` have the names and shapes of a model's `own`.

    Names that begin with one of `optional`, or have a part that does, may be on one side alone.
    """
    missing = [name for name in sorted(own.keys() - given.keys()) if not _has_part(name, optional)]
    excess = [name for name in sorted(given.keys() - own.keys()) if not _has_part(name, optional)]
    error = misfit(source, _shapes(given), _shapes(own), missing, excess)
    if error is not None:
        raise error


def _take_memory(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Let tensors of a module have the memory of those given, where that is all that changes.

    What shares memory on either side, as a transformer's masks do, is left to be copied.
    """
    shared = _overlapping(given) | _overlapping({name: own[name] for name in given})
    for name in given.keys() - shared:
        if _layout(own[name]) == _layout(given[name]) and given[name].is_contiguous():
            own[name].data = given[name]


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _overlapping(tensors: Mapping[str, Tensor]) -> set[str]:
    """The names of tensors that have memory in common with another one."""
    found: set[str] = set()
    end, last = 0, ""
    for start, name in sorted((tensor.data_ptr(), name) for name, tensor in tensors.items()):
        size = tensors[name].nbytes
        if size and start < end:
            found |= {name, last}
        if start + size > end:
            end, last = start + size, name
    return found


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _has_part(name: str, parts: Sequence[str]) -> bool:
    return any(name.startswith(part) or f".{part}" in name for part in parts)


def save_atomic(content: Any, path: str | Path) -> None:
    """Write a checkpoint so that at any moment `path` is either the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

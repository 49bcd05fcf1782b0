"""Files become weights: the only way in. Nothing that a checkpoint contains is ever executed."""

from __future__ import annotations

import os
import pickle
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from taming.config import instantiate_from_config, load_config, without_checkpoint_paths
from taming.errors import UserError


@dataclass(frozen=True)
class Run:
    """A training run on disk: its folder, the checkpoint to use, and its configs in merge order."""

    folder: Path
    checkpoint: Path
    configs: tuple[Path, ...]


def find_run(path: str | Path) -> Run:
    """The run that `path` names: a folder with `checkpoints/last.ckpt`, or a checkpoint.

    Raises `UserError` where there is no such run or no checkpoint in it.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no run or checkpoint at {path}")
    folder = _folder_of_checkpoint(path) if path.is_file() else path
    checkpoint = path if path.is_file() else folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        raise UserError(_no_last_checkpoint(folder))
    return Run(folder, checkpoint, tuple(_project_configs_last(folder / "configs")))


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


def _project_configs_last(folder: Path) -> list[Path]:
    """Configs by time; each resume wrote a pair of them, and the newest wins in a merge."""
    return sorted(folder.glob("*-lightning.yaml")) + sorted(folder.glob("*-project.yaml"))


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
    """
    run = find_run(path)
    config = run_config(run, base, overrides)
    model = instantiate_from_config(without_checkpoint_paths(config.model), key="model")
    checkpoint = read_checkpoint(run.checkpoint)
    load_weights(model, checkpoint["state_dict"], source=run.checkpoint)
    return model.eval(), run, int(checkpoint.get("global_step", 0))


class _Inert:
    """Stands in for a foreign class in an old checkpoint: takes any state and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Classes that Lightning and OmegaConf of their time left in published checkpoints. Their contents
# are not needed; anything else that is not plain data is refused.
_KNOWN_FOREIGN = (
    "pytorch_lightning.",
    "omegaconf.",
    "argparse.",
    "typing.",
    "numpy.",
    "collections.",
)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a `.ckpt`, `.pt` or `.safetensors` file: a dict with `state_dict` and what else it has.

    Raises `UserError` for a file that is missing, no checkpoint, cut short, or that holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if isinstance(content, Mapping) and "state_dict" in content:
        return dict(content)
    if isinstance(content, Mapping) and all(isinstance(v, Tensor) for v in content.values()):
        return {"state_dict": dict(content)}
    raise UserError(f"{path} holds no model weights (no 'state_dict' in it)")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no intact safetensors file ({error}); fetch it again") from None


# What torch and pickle raise for files that are cut short or something else altogether.
_BROKEN = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError)


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        with torch.serialization.safe_globals(_stubs(path, foreign)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _BROKEN as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} is no intact checkpoint ({reason}); fetch or save it again"
        ) from None


def _stubs(path: Path, foreign: Iterable[str]) -> list[Any]:
    for name in foreign:
        if not name.startswith(_KNOWN_FOREIGN):
            raise UserError(f"{path} would run '{name}' when loaded; it is refused as unsafe")
    return [(type("Inert", (_Inert,), {}), name) for name in foreign]


def load_weights(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    source: str | Path = "the checkpoint",
    ignore_keys: Iterable[str] = (),
    optional: Sequence[str] = ("loss.",),
) -> list[str]:
    """Copy `state_dict` into `module`; returns the names that it lacked.

    Keys that start with one of `ignore_keys` are dropped. Names with a part in `optional` (the
    losses, which only training needs) may be missing or in excess; any other difference is a
    `UserError`, as the model would not be the one that was saved.
    """
    kept = {k: v for k, v in state_dict.items() if not k.startswith(tuple(ignore_keys))}
    own = module.state_dict()
    for name in kept.keys() & own.keys():
        if kept[name].shape != own[name].shape:
            raise UserError(
                f"{source}: '{name}' has shape {list(kept[name].shape)}, but the config makes it "
                f"{list(own[name].shape)}; is this the config that it was trained with?"
            )
    missing = sorted(own.keys() - kept.keys())
    ignored = tuple(ignore_keys)
    needed = [
        n for n in missing if not _has_part(n, optional) and not (ignored and n.startswith(ignored))
    ]
    excess = [name for name in kept.keys() - own.keys() if not _has_part(name, optional)]
    if needed or excess:
        raise UserError(f"{source} does not fit the config: {_describe(needed, sorted(excess))}")
    module.load_state_dict({k: v for k, v in kept.items() if k in own}, strict=False)
    return missing


def _has_part(name: str, parts: Sequence[str]) -> bool:
    return any(name.startswith(part) or f".{part}" in name for part in parts)


def _describe(missing: Sequence[str], excess: Sequence[str]) -> str:
    """`"12 keys missing (encoder.conv_in.weight, ...), 3 unknown (...)"`, grouped for a reader."""
    told = []
    for names, what in ((missing, "missing"), (excess, "unknown")):
        groups: dict[str, list[str]] = defaultdict(list)
        for name in names:
            groups[name.partition(".")[0]].append(name)
        told += [
            f"{group}: {len(keys)} keys {what} ({keys[0]} ...)" for group, keys in groups.items()
        ]
    return "; ".join(told)


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

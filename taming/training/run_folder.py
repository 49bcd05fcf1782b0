"""The folder of a run: `logs/<time>_<name><postfix>/` with checkpoints, configs and images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from torch import nn

from taming.checkpoint import check_fit, find_run, read_checkpoint
from taming.errors import UserError

# Processes that a trainer starts on this machine inherit it, and so agree on one folder.
_TIME_VARIABLE = "TAMING_RUN_TIME"


def run_time() -> str:
    """The time that names this run and its configs, the same in all processes of the run."""
    return os.environ.setdefault(_TIME_VARIABLE, datetime.now().strftime("%Y-%m-%dT%H-%M-%S"))


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, its configs in the order of merging, and the checkpoint it continues from."""

    path: Path
    configs: tuple[Path, ...]
    resume_from: Path | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def config_folder(self) -> Path:
        return self.path / "configs"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"


def new_run(
    name: str | None, configs: Sequence[Path], postfix: str = "", project: str | None = None
) -> RunFolder:
    """The folder of a new run, named by `name` or its first config.

    Raises:
        UserError: if there is neither.
    """
    label = name or (configs[0].stem if configs else "")
    if not label:
        raise UserError("nothing to do: give a config with --base, or a run to go on with --resume")
    parent = Path("logs") / project if project else Path("logs")
    return RunFolder(parent / f"{run_time()}_{label}{postfix}", tuple(configs))


def resumed_run(path: str | Path, configs: Sequence[Path]) -> RunFolder:
    """The folder of an existing run or checkpoint; its own configs come before `configs`.

    Raises:
        UserError: if there is no such run, or its checkpoint is damaged.
    """
    run = find_run(path)
    read_checkpoint(run.checkpoint)  # a damaged one is refused before anything is built
    return RunFolder(run.folder, (*run.configs, *configs), run.checkpoint)


def check_resumable(model: nn.Module, checkpoint: Path) -> None:
    """Check, before anything is written, that training `model` can continue from a checkpoint.

    Raises:
        UserError: for the weights of another model, and for weights without a training state.
    """
    content, own = read_checkpoint(checkpoint), model.state_dict()
    # A perceptual loss that the config has turned off since is left out.
    state = {k: v for k, v in content["state_dict"].items() if k in own or "perceptual" not in k}
    check_fit(own, state, source=checkpoint)
    if not {"optimizer_states", "pytorch-lightning_version"} <= content.keys():
        raise UserError(
            f"{checkpoint} has weights, but no state of a training to go on with; start a new run "
            f"from it with --base and model.params.ckpt_path={checkpoint}"
        )

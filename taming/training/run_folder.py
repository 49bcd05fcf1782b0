"""The folder of a run: `logs/<time>_<name><postfix>/` with checkpoints, configs and images."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import nn

from taming.atomic_files import atomic_path, check_place, make_new_folder, sole_user
from taming.checkpoint import (
    check_fit,
    configure_for,
    find_run,
    find_unsaved,
    is_hub_name,
    normal_path,
    read_checkpoint,
)
from taming.distributed import is_first_process
from taming.errors import UserError
from taming.lightning_internals import read_place
from taming.training.new_options import PERCEPTUAL, adapted
from taming.training.position import Position
from taming.training.slurm import note_job

# Processes that a trainer starts on this machine inherit them, and so agree on one folder.
_TIME_VARIABLE, _FOLDER_VARIABLE = "TAMING_RUN_TIME", "TAMING_RUN_FOLDER"


def run_time() -> str:
    """The time that names this run and its configs, the same in all processes of the run."""
    return os.environ.setdefault(_TIME_VARIABLE, datetime.now().strftime("%Y-%m-%dT%H-%M-%S"))


@contextmanager
def one_start() -> Iterator[None]:
    """A block that starts one run: what it tells its processes is forgotten after it."""
    before = {name: os.environ.get(name) for name in (_TIME_VARIABLE, _FOLDER_VARIABLE)}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, its configs in the order of merging, and the checkpoint it continues from.

    Attributes:
        is_new: the folder is still to be made.
        by_name: the user has named the checkpoint; it may be any of the run.
    """

    path: Path
    configs: tuple[Path, ...]
    resume_from: Path | None = None
    is_new: bool = False
    by_name: bool = False
    stored: tuple[Path, ...] = ()  # those of `configs` that are in the folder
    moves_to: Path | None = None  # where it is once it has ended, if that is another place

    @property
    def last_path(self) -> Path:
        """Where it is once this training has ended."""
        return self.moves_to or self.path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def config_folder(self) -> Path:
        return self.path / "configs"

    @property
    def tables(self) -> Path:
        """A folder with a table of logged values for each start of the run."""
        return self.path / "csv"

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
    for flag, part in (("-n/--name", label), ("-f/--postfix", postfix)):
        if part and (Path(part).name != part or "\\" in part):
            raise UserError(f"{flag} is a name, not a path: {part}; -p takes a folder")
    parent = Path("logs") / project if project else Path("logs")
    path = parent / f"{run_time()}_{label}{postfix}"
    check_place(path, "choose another folder to start in")
    return RunFolder(path, tuple(configs), is_new=True)


def resumed_run(path: str | Path, configs: Sequence[Path]) -> RunFolder:
    """The folder of an existing run or checkpoint; its own configs come before `configs`.

    A run that was stopped before its first save has no checkpoint, and starts over.

    Raises:
        UserError: if there is no such run, or all that could be used is damaged.
    """
    if is_hub_name(path):
        raise UserError(
            f"{path} has weights alone, and no state of a training to go on with; start a run from "
            f"them with {shlex.quote(f'model.params.ckpt_path={path}')}"
        )
    if (unsaved := find_unsaved(path)) is not None:
        folder, own = unsaved
        rank_zero_info(f"{folder} was stopped before its first save: it starts over")
        return RunFolder(folder, (*own, *configs), stored=own)
    run = find_run(path)
    if not (run.configs or configs):
        start = shlex.quote(f"model.params.ckpt_path={path}")
        raise UserError(
            f"{run.checkpoint} has no config beside it to go on with; give the run's --base, or "
            f"start a new run from its weights: --base configs/finetune_foreign.yaml {start}"
        )
    read_checkpoint(run.checkpoint)  # a damaged one is refused before anything is built
    check_place(run.folder / "checkpoints", "make it writable to go on with the run")
    by_name = normal_path(path).is_file()
    return RunFolder(
        run.folder, (*run.configs, *configs), run.checkpoint, by_name=by_name, stored=run.configs
    )


def check_own_places(run: RunFolder, params: Mapping[str, Any], key: str) -> None:
    """Refuse (`UserError`) other places for checkpoints and configs than the run's own, where all
    that goes on with it or uses it looks for them; `key` is where `params` stand."""
    own = {"dirpath": run.checkpoints, "ckptdir": run.checkpoints}
    own |= {"cfgdir": run.config_folder, "logdir": run.path}
    file = Path(os.path.normpath(run.checkpoints / str(params.get("filename") or "")))
    if not file.is_relative_to(os.path.normpath(run.checkpoints)):
        raise UserError(f"{key}.filename leads out of {run.checkpoints}: give a name in there")
    for name in own.keys() & params.keys():
        given, place = params[name], own[name]
        if given is None or normal_path(str(given)).resolve() != place.resolve():
            stay = f"of this run that is {place}" if run.stored else "leave it out"
            raise UserError(
                f"{key}.{name} is {given}, but a run is one folder, in which -r and the scripts "
                f"look: {stay}; a new run's folder is named by -n and -p"
            )


@contextmanager
def claimed(run: RunFolder) -> Iterator[RunFolder]:
    """Make the folder of a new run, and hold it against other processes within the block.

    A name that is taken gets a number. Only the first process of a run does so. An empty folder is
    removed again at the end.

    Raises:
        UserError: if it cannot be made, or another process trains this run.
    """
    if not is_first_process():
        yield replace(run, path=Path(os.environ.get(_FOLDER_VARIABLE, run.path)))
        return
    if run.is_new:
        run = replace(run, path=make_new_folder(run.path), is_new=False)
        note_job(run.path)
        os.environ[_FOLDER_VARIABLE] = str(run.path)
    try:
        with sole_user(run.path, "wait for it to end, or stop it, before you go on with the run"):
            yield _with_last(run)
    finally:
        with suppress(OSError):
            run.path.rmdir()


def _with_last(run: RunFolder) -> RunFolder:
    """Have `last.ckpt` be the checkpoint that was found in its place, if it is old or damaged."""
    if run.resume_from is None or run.by_name or run.resume_from.parent != run.checkpoints:
        return run
    if run.resume_from != run.last_checkpoint:
        with atomic_path(run.last_checkpoint, durable=True) as partial:
            try:
                os.link(run.resume_from, partial)
            except OSError:
                shutil.copyfile(run.resume_from, partial)
    # Lightning never removes the file that it goes on from, which an epoch's is in its turn.
    return replace(run, resume_from=run.last_checkpoint)


def further(checkpoint: Path, max_epochs: int | None, max_steps: int) -> str:
    """Flags by which a run goes on that is to have so many epochs or steps, and has them at a
    checkpoint; "" if it has not."""
    steps, epochs = _reached(checkpoint)
    flags = [f"--max_steps {2 * max(steps, 1)}"] if 0 <= max_steps <= steps else []
    if max_epochs is not None and 0 <= max_epochs <= epochs:
        flags.append(f"--max_epochs {2 * (epochs or 500)}")
    return " ".join(flags)


def _reached(checkpoint: Path) -> tuple[int, int]:
    """The steps and the whole epochs that were trained up to a checkpoint; -1 epochs if it does not
    say."""
    content = read_checkpoint(checkpoint)
    if "loops" not in content:  # of Lightning 1.0
        return content["global_step"], -1
    place, position = read_place(content["loops"]["fit_loop"]), Position.read(content)
    return content["global_step"], place.epoch - bool(position and position.epoch_ends)


def check_resumable(model: nn.Module, checkpoint: Path) -> bool:
    """Check, before anything is written, that training `model` can continue from a checkpoint.

    Returns whether the loss has to find weights, as the checkpoint is from before it took them.

    Raises:
        UserError: for the weights of another model, and for weights without a training state.
    """
    content = read_checkpoint(checkpoint)
    configure_for(model, content["state_dict"].keys())
    fitting = adapted(content["state_dict"], model)
    check_fit(model.state_dict(), fitting.state, source=checkpoint)
    if not {"optimizer_states", "pytorch-lightning_version"} <= content.keys():
        raise UserError(
            f"{checkpoint} has weights, but no state of a training to go on with; start a new run "
            f"from it with --base and {shlex.quote(f'model.params.ckpt_path={checkpoint}')}"
        )
    if said := fitting.said(checkpoint):
        rank_zero_info(said)
    return PERCEPTUAL in fitting.new

"""How training ends: what its exceptions and signals mean, and how to go on."""

from __future__ import annotations

import re
import shlex
import signal
import traceback
from collections.abc import Sequence, Sized
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Timer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from taming.checkpoint import read_checkpoint
from taming.distributed import disconnect, is_first_process
from taming.errors import Stopped, UserError, described
from taming.lightning_internals import end_loaders
from taming.modules.util import count_params
from taming.shipped import run_script
from taming.training.data_module import DataModuleFromConfig
from taming.training.processes import ProcessWatch, hang, loader_timed_out
from taming.training.run_folder import RunFolder
from taming.user_code import is_ours, name_of

_DEAD_WORKER = re.compile(
    r"DataLoader worker \(pid\D*(?P<process>[\d, ]+)\) (?:is killed by signal: (?P<signal>[\w ]+)|"
    r"exited unexpectedly)"
)


def fit(
    trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, run: RunFolder
) -> None:
    """Train, from the run's checkpoint if there is one.

    Raises:
        UserError: also if a process of the run, or of its loaders, has died.
        Stopped: after a signal; its message says how to go on.
    """
    start = read_checkpoint(run.resume_from).get("global_step", 0) if run.resume_from else 0
    try:
        trainer.fit(model, data, ckpt_path=str(run.resume_from) if run.resume_from else None)
    except Stopped as stop:
        end_loaders(trainer)
        disconnect()
        raise Stopped(stop.number, _how_it_stopped(stop, trainer, run)) from None
    except Exception as error:
        sentence = _death(trainer, error)
        end_loaders(trainer)
        if sentence is None:
            if isinstance(error, UserError) and run.last_checkpoint.exists():
                # Flags of a run that goes on, such as how much longer, may not be kept yet.
                again = "give the same command again" if run.resume_from else ""
                again = again or f"go on with {_command(run)}"
                rank_zero_info(f"once what follows is mended, {again}")
            raise
        raise UserError(f"{sentence}; go on with {_command(run)}") from None
    if trainer.num_training_batches == 0 and trainer.limit_train_batches != 0:
        raise UserError(
            f"data: {name_of(type(data))}.train_dataloader gives no batches: nothing was trained"
        )
    rank_zero_info(_what_was_done(trainer, run, start))


def final_test(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    checkpoint: Path | None,
) -> None:
    """Test, with the weights of a checkpoint, or with the model's own.

    Raises:
        UserError: for what Lightning refuses, and loaders of the user's that raise something.
    """
    try:
        trainer.test(model, data, ckpt_path=str(checkpoint) if checkpoint else None)
    except Exception as error:
        if (sentence := _refusal(error)) is None:
            raise
        raise UserError(f"the test: {sentence}") from None
    if not sum(trainer.num_test_batches) and trainer.limit_test_batches:
        raise UserError(f"data: {name_of(type(data))}.test_dataloader gives no batches")


def _what_was_done(trainer: pl.Trainer, run: RunFolder, start: int) -> str:
    """The last line of a training that began at step `start`."""
    if batches := int(trainer.fast_dev_run):  # type: ignore[attr-defined]
        return (
            f"fast_dev_run: tried {'1 batch' if batches == 1 else f'{batches} batches'}, and saved "
            "no checkpoint; to train, leave it out"
        )
    if trainer.global_step > start:
        where = f"the run is in {run.last_path}, go on with -r {shlex.quote(str(run.last_path))}"
        reason = ", where its max_time was over" if _is_out_of_time(trainer) else ""
        return f"trained to step {trainer.global_step}{reason}; {where}"
    limits = {
        "max_steps": trainer.max_steps,
        "max_epochs": trainer.max_epochs,
        "limit_train_batches": trainer.limit_train_batches,
    }
    reasons = [f"{name} is 0" for name, limit in limits.items() if limit == 0]
    reasons += ["its max_time was over"] if _is_out_of_time(trainer) else []
    because = f", as {' and '.join(reasons)}" if reasons else ""
    return f"nothing was trained{because}; {run.last_path} has no new checkpoint"


def say_what_was_checked(
    model: pl.LightningModule, data: pl.LightningDataModule, words: Sequence[str]
) -> None:
    """The last line of a start without `-t`; `words` are its command line."""
    datasets = data.datasets if isinstance(data, DataModuleFromConfig) else {}
    sized = {split: one for split, one in datasets.items() if isinstance(one, Sized)}
    parts = [f"{len(one):,} items of {split}" for split, one in sized.items()]
    parts.append(f"{count_params(model):,} weights of the model")
    rank_zero_info(
        f"checked: the config, {', '.join(parts)}; nothing was trained: to train, add -t, as in "
        f"{run_script('main')} {shlex.join(words)} -t"
    )


def _is_out_of_time(trainer: pl.Trainer) -> bool:
    timers = [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
    left = [timer.time_remaining() for timer in timers]
    return any(seconds is not None and seconds <= 0 for seconds in left)


def _is_raised_by_lightning(error: Exception) -> bool:
    """Whether it is what Lightning says of a config, not what a bug of ours makes of it."""
    kinds = ValueError | RuntimeError | NotImplementedError | TypeError
    refused = isinstance(error, MisconfigurationException)
    return refused or (_is_from_lightning(error) and isinstance(error, kinds))


def _is_from_lightning(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    inside = r"[/\\](pytorch_lightning|lightning\w*)[/\\]"
    return bool(frames and re.search(inside, frames[-1].filename))


def _refusal(error: Exception) -> str | None:
    """What to say of what Lightning cannot use, and of what a loader's hook raises."""
    if isinstance(error, UserError):
        return None
    if (hook := _raising_loader(error)) is not None:
        return f"data: {hook} raises {described(error)}"
    if _is_from_lightning(error) and _passes(error, _OPTIMIZERS):
        return (
            "configure_optimizers must return an optimizer, a list of them, or (optimizers, "
            f"schedules): {described(error)}"
        )
    if _passes(error, ("_verify_dataloader_idx_requirement",)) and _is_from_lightning(error):
        return (
            "validation and test are on one loader each: return one, with the datasets as one "
            "torch.utils.data.ConcatDataset, or define the model's steps with dataloader_idx"
        )
    if _is_raised_by_lightning(error):
        return f"the Trainer refuses this: {' '.join(str(error).split())}"
    return None


# Functions of Lightning's that go through what `configure_optimizers` returns.
_OPTIMIZERS = ("_init_optimizers_and_lr_schedulers", "_optimizers_to_device")
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def _passes(error: Exception, functions: Sequence[str]) -> bool:
    return any(f.f_code.co_name in functions for f, _ in traceback.walk_tb(error.__traceback__))


def _raising_loader(error: Exception) -> str | None:
    """The method of a data module of the user's that an exception comes from, if it does."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner, method = frame.f_locals.get("self"), frame.f_code.co_name
        own = isinstance(owner, pl.LightningDataModule) and not is_ours(type(owner))
        if own and method in _LOADERS:
            return f"{name_of(type(owner))}.{method}"
    return None


def _raising_callback(error: Exception) -> Callback | None:
    """The callback of Lightning's that an exception comes from, if it does.

    Some of them train: what the model raises then is not the callback's. One's own raise what they
    raise, with the way to it.
    """
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        caller, module = frame.f_locals.get("self"), str(frame.f_globals.get("__name__"))
        if isinstance(caller, Callback):
            return caller if module.startswith(("pytorch_lightning.", "lightning.")) else None
        if module.startswith("taming."):
            return None
    return None


def _command(run: RunFolder) -> str:
    return f"{run_script('main')} -r {shlex.quote(str(run.last_path))} -t"


def _how_it_stopped(stop: Stopped, trainer: pl.Trainer, run: RunFolder) -> str:
    if not is_first_process():
        return ""
    reason = f" ({stop.message})" if stop.message else ""
    name = signal.Signals(stop.number).name
    return f"stopped by {name} at step {trainer.global_step}{reason}; go on with {_command(run)}"


def _death(trainer: pl.Trainer, error: Exception) -> str | None:
    """What to say of an exception that comes from the death of another process."""
    for watch in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(watch, ProcessWatch):
            death = None if isinstance(error, UserError) else watch.explain(error)
            watch.end_others()
            if death is not None:
                return death
    data = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, DataModuleFromConfig) and loader_timed_out(error):
        return hang(data)
    if (callback := _raising_callback(error)) is not None:
        return f"the callback {name_of(type(callback))} cannot be used here: {described(error)}"
    if (refusal := _refusal(error)) is not None:
        return refusal
    if isinstance(error, OSError) and "in DataLoader worker process" in str(error):
        reason = str(error).strip().splitlines()[-1].partition(": ")[2]
        return f"a worker of the data loader cannot read its data ({reason})"
    said = _vanished(error) or f"{error} {error.__cause__} {error.__context__}"
    if (match := _DEAD_WORKER.search(said)) is None:
        return None
    process = f"a worker of the data loader (process {match['process'].strip()})"
    fewer = "use fewer workers (data.params.num_workers) or smaller batches"
    if match["signal"] == "Bus error":
        return f"{process} found no more shared memory: make /dev/shm larger, or {fewer}"
    manner = f" by signal '{match['signal']}'" if match["signal"] else ""
    return f"{process} was ended{manner}, most likely by the system as memory ran out: {fewer}"


def _vanished(error: Exception) -> str:
    """What torch says of dead workers, where it only finds that the memory of a batch, which goes
    with its worker, is no longer there; "" elsewhere."""
    if not isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return ""
    if not _passes(error, ("rebuild_storage_fd", "rebuild_storage_filename")):
        return ""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    loader = next((f.f_locals["self"] for f in frames if f.f_code.co_name == "_try_get_data"), None)
    workers = [] if loader is None else loader._workers
    for worker in workers:
        worker.join(0.1)  # the system may still be at it
    dead = ", ".join(str(worker.pid) for worker in workers if not worker.is_alive())
    return f"DataLoader worker (pid(s) {dead}) exited unexpectedly" if dead else ""

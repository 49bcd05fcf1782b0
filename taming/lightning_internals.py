"""Every use of Lightning that goes beyond its public interface, in one place.

`pyproject.toml` bounds Lightning's version from above because of this file;
tests/test_lightning_internals.py names each attribute, so that a new version that lacks one fails
there first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import SLURMEnvironment
from lightning_fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning_fabric.utilities.apply_func import convert_tensors_to_scalars
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loops.evaluation_loop import RestartStage
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import ModelParallelStrategy, ParallelStrategy, Strategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer


def batches_begun(trainer: pl.Trainer) -> int:
    """How many batches of the current epoch have been taken from the loader."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


# ---------------------------------------------------------------------- where training is


@dataclass(frozen=True)
class Place:
    """A place between two batches.

    Attributes:
        epoch: the epoch that goes on or begins here.
        batches: how many of its batches have been trained on.
        complete: they are all of them, and the end of the epoch is next.
    """

    epoch: int
    batches: int
    complete: bool = False


def place_of(trainer: pl.Trainer) -> Place:
    """Where training is, also right after a restore; within a step, where the step began."""
    epochs, batches = trainer.fit_loop.epoch_progress, trainer.fit_loop.epoch_loop.batch_progress
    # As in `fit_loop.state_dict()`, whose other entries take most of its time.
    progress = {"current": vars(batches.current), "is_last_batch": batches.is_last_batch}
    current = {"current": vars(epochs.current)}
    return read_place({"epoch_progress": current, "epoch_loop.batch_progress": progress})


def read_place(fit_loop: Mapping[str, Any]) -> Place:
    """The place that the state of a fit loop stands for, at whatever moment it was saved.

    Lightning counts batches and epochs at several points of their course, and resets the count of
    batches only when the next epoch begins.
    """
    epochs = fit_loop["epoch_progress"]["current"]
    progress = fit_loop["epoch_loop.batch_progress"]
    last, batches = progress["is_last_batch"], progress["current"]
    done = batches["processed"]
    if epochs["completed"] > epochs["processed"]:  # written by Lightning 1.0 to 1.5
        return Place(epochs["completed"], 0)
    if epochs["started"] > epochs["processed"]:
        return Place(epochs["processed"], done, last and done >= batches["ready"])
    begins = epochs["ready"] > epochs["started"] or last or not done
    # An epoch that max_steps cut short has been counted like a complete one.
    return Place(epochs["processed"], 0) if begins else Place(epochs["processed"] - 1, done)


def write_place(fit_loop: dict[str, Any], place: Place, steps: int) -> None:
    """Let the state of a fit loop, after `steps` optimizer steps, stand for a place.

    `continue_from_place` has to be called when the loop has been started with it.
    """
    begun = place.batches > 0 or place.complete
    for counts in fit_loop["epoch_progress"].values():
        counts |= dict.fromkeys(("ready", "started"), place.epoch + begun)
        counts |= dict.fromkeys(("processed", "completed"), place.epoch)
    keys = ("ready", "started", "processed", "completed")
    progress = fit_loop["epoch_loop.batch_progress"]
    progress["is_last_batch"] = place.complete or not begun
    progress["total"] |= dict.fromkeys(keys, progress["total"]["processed"] or steps)
    progress["current"] |= dict.fromkeys(keys, place.batches)
    fit_loop["epoch_loop.val_loop.batch_progress"] = {
        "total": dict.fromkeys(keys, 0),
        "current": dict.fromkeys(keys, 0),
        "is_last_batch": False,
    }


def continue_from_place(trainer: pl.Trainer, validated: bool) -> None:
    """Have a fit loop that was restored by `write_place` go on exactly there; in `on_train_start`.

    Args:
        validated: the validation that may be due after the last batch has been done.
    """
    fit_loop, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = next_row(trainer)
    if loop.batch_progress.current.ready == 0:
        loop.restarting = False  # an epoch begins as in a run that was never stopped
        return
    assert fit_loop._data_fetcher is not None
    due = loop._should_check_val_fx(fit_loop._data_fetcher)
    if due and not validated:
        loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
    elif loop.batch_progress.is_last_batch:
        loop.val_loop._has_run = True  # it says that the epoch is done
        return
    if due:  # the loop adds one after a validation, and where it leaves one out
        loop._batches_that_stepped -= 1


def end_restart(trainer: pl.Trainer, validated: bool) -> None:
    """Have what follows an epoch's end treated like that of a run that was never stopped.

    Lightning does so after a batch, which a run that goes on at an epoch's end has not had.

    Args:
        validated: there has been a validation, of which callbacks expect values.
    """
    loop = trainer.fit_loop.epoch_loop
    if loop.restarting:
        loop.val_loop._has_run = validated
    loop.restarting = False


def end_loaders(trainer: pl.Trainer) -> None:
    """End the loader processes of a fit that was broken off: within a validation, Lightning would
    leave training's, for which the interpreter would wait at its end."""
    trainer.fit_loop.teardown()


def is_in_step(trainer: pl.Trainer, *, with_hooks: bool) -> bool:
    """Whether a batch is being trained on; `with_hooks`: or the hooks after it are called."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return batches.started > (batches.completed if with_hooks else batches.processed)


def is_at_epoch_end(trainer: pl.Trainer) -> bool:
    """Whether the hooks of an epoch's end are being called."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return epochs.processed > epochs.completed


# ---------------------------------------------------------------------- logged values


def next_row(trainer: pl.Trainer) -> int:
    """The number under which the next step is logged: of the optimizer's step, or of the batch
    where a model steps its optimizers itself."""
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return batches.processed


def unlogged_values(trainer: pl.Trainer) -> dict[str, float] | None:
    """What will be logged of the batch that has just been trained on, if its hooks are called."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    connector = trainer._logger_connector
    waits = batches.processed > batches.completed and connector.should_update_logs
    automatic = trainer.lightning_module.automatic_optimization
    if not waits or (automatic and trainer.fit_loop._should_accumulate()):
        return None
    values: dict[str, Any] = convert_tensors_to_scalars(connector.metrics["log"])
    return {"epoch": trainer.current_epoch, **values} if values else None


def monitored_values(trainer: pl.Trainer) -> dict[str, Tensor]:
    """The latest values of what callbacks monitor, on the CPU."""
    values = trainer._logger_connector._callback_metrics
    return {name: value.detach().cpu() for name, value in values.items()}


def restore_monitored_values(trainer: pl.Trainer, values: Mapping[str, Tensor]) -> None:
    """Give callbacks the values that they saw before the checkpoint."""
    device = trainer.strategy.root_device
    restored = {name: value.to(device) for name, value in values.items()}
    trainer._logger_connector._callback_metrics.update(restored)


def hide_logged_from(logger: TensorBoardLogger, row: int) -> None:
    """Have TensorBoard show nothing that earlier processes logged under `row` or later ones."""
    logger.experiment.close()
    forget_event_file(logger)
    logger._kwargs["purge_step"] = row


def csv_writer(logger: CSVLogger, make: Callable[[str], ExperimentWriter]) -> ExperimentWriter:
    """The writer of a logger's table, made from its folder the first time."""
    if logger._experiment is None:
        logger._experiment = make(logger.log_dir)
    assert isinstance(logger._experiment, ExperimentWriter)
    return logger._experiment


def forget_event_file(logger: TensorBoardLogger) -> None:
    """Have a logger open another file of events for the next one."""
    logger._experiment = None


# ---------------------------------------------------------------------- saving and stepping


def dump_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """What `trainer.save_checkpoint` writes. The tensors are those of the model, not copies."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def has_checkpoints_of_one_file(trainer: pl.Trainer) -> bool:
    """Whether rank 0 writes checkpoints; some strategies write parts of them in all processes."""
    return type(trainer.strategy).save_checkpoint is Strategy.save_checkpoint


def requeues_on_slurm(trainer: pl.Trainer) -> bool:
    """Whether a signal to save is SLURM's, after which the job is to be queued again."""
    environment = trainer._accelerator_connector.cluster_environment
    return isinstance(environment, SLURMEnvironment) and environment.auto_requeue


def take_child_processes(trainer: pl.Trainer) -> list[Popen[bytes]]:
    """The processes that Lightning has started here, which its own watch leaves alone from now on.

    That watch kills all processes, this one too, if one of them ends otherwise than by itself.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return []
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []
    return list(launcher.procs)


def without_gradient_sync(trainer: pl.Trainer) -> AbstractContextManager[Any]:
    """A context in which backward passes add up gradients without averaging them over processes."""
    strategy = trainer.strategy
    return (
        strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
    )


def divide_over_all(strategy: ModelParallelStrategy) -> None:
    """Put all processes along the dimension "data_parallel" of a strategy's mesh, in advance."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
    strategy._tensor_parallel_size = 1


def leave_out_of_ddp(module: nn.Module, names: Sequence[str]) -> None:
    """Have DistributedDataParallel ignore the parameters and buffers of these names."""
    # torch's own name for it, which has no public setter.
    module._ddp_params_and_buffers_to_ignore = list(names)  # type: ignore[assignment]


def uncounted(trainer: pl.Trainer, optimizer: LightningOptimizer) -> LightningOptimizer:
    """An optimizer's wrapper whose steps do not add to `trainer.global_step`."""
    return LightningOptimizer._to_lightning_optimizer(optimizer.optimizer, trainer.strategy)


def count_step(optimizer: LightningOptimizer) -> None:
    """Count a step that is not taken, as the one that an optimizer's wrapper counts."""
    optimizer._on_before_step()
    optimizer._on_after_step()


@contextmanager
def one_scale(trainer: pl.Trainer) -> Iterator[None]:
    """Within it, the scaler of float16 keeps its scale, and follows all steps together at the end.
    With Lightning's changes after each, earlier batches' gradients could have another scale."""
    scaler = scaler_of(trainer)
    if scaler is None:
        yield
        return
    stepped: list[bool] = []
    scaler.update = lambda *_: stepped.append(True)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del scaler.update
        if stepped:
            scaler.update()


def scaler_of(trainer: pl.Trainer) -> GradScaler | None:
    """What scales losses in float16, and leaves out steps with infinite gradients."""
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def unscales_itself(trainer: pl.Trainer, optimizer: Optimizer) -> bool:
    """Whether an optimizer takes the scale of float16 out of its gradients, in its step."""
    return scaler_of(trainer) is not None and _optimizer_handles_unscaling(optimizer)


def clip_gradients(trainer: pl.Trainer, optimizer: Optimizer, value: float, by: str) -> None:
    """Clip by "norm" or "value" where Lightning calls a model to do so, before a step: the scale is
    out of the gradients, but for optimizers that would take it out later, unless they are told."""
    scaler = scaler_of(trainer)
    if scaler is not None and _optimizer_handles_unscaling(optimizer):
        scaler.unscale_(optimizer)
    plugin = trainer.precision_plugin
    clip = plugin.clip_grad_by_value if by == "value" else plugin.clip_grad_by_norm
    clip(optimizer, value)


def names_logged(trainer: pl.Trainer) -> set[str]:
    """The names of what has been logged so far, also of means over an epoch that goes on."""
    metas = [result.meta for result in (trainer._results or {}).values()]
    epoch = {meta.forked_name(on_step=on_step) for meta in metas for on_step in (True, False)}
    return {*trainer.callback_metrics, *(meta.name for meta in metas), *epoch}

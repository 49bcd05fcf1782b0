"""The Trainer, with its loggers and callbacks, from the section `lightning` of a config."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import (
    Callback,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    ProgressBar,
)
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from taming.atomic_files import check_place
from taming.config import (
    check_config,
    get_obj_from_str,
    instantiate_from_config,
    instantiate_with,
    plain,
)
from taming.errors import UserError
from taming.lr_scheduler import make_rule, value_at
from taming.models.autoencoder_training import AutoencoderTraining
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.losses.base import FirstStageLoss
from taming.training.callbacks import NamedModel, SetupCallback
from taming.training.checkpoint_io import AtomicCheckpointIO
from taming.training.checkpoints import Checkpoints
from taming.training.effect import FiniteValidation, TrainsSomething
from taming.training.first_items import FirstBatches
from taming.training.hooks import check_hooks
from taming.training.logged_rows import free_version
from taming.training.monitors import LoggedNames, Monitored, is_of_validation
from taming.training.noise import PositionedNoise
from taming.training.numbers import FiniteNumbers
from taming.training.position import ExactResume
from taming.training.processes import LoaderWatch, ProcessWatch
from taming.training.progress import Pace, RunProgress, Summary
from taming.training.run_folder import RunFolder, check_own_places, run_time
from taming.training.strategies import trainer_arguments
from taming.user_code import is_ours

_SETUP = "setup_callback"
_SETUP_ARGUMENTS = tuple(inspect.signature(SetupCallback).parameters)


def prepare_loss(model: pl.LightningModule) -> None:
    """Load what a loss needs of its own, or refuse, before the run has a folder."""
    if isinstance(model, AutoencoderTraining) and isinstance(model.loss, FirstStageLoss):
        model.loss.prepare()


def prepare_teacher(model: pl.LightningModule) -> None:
    """Load what a transformer learns from, or refuse it, before the run has a folder."""
    if isinstance(model, Net2NetTransformer):
        model.load_teacher()


def try_schedule(model: pl.LightningModule) -> None:
    """Refuse (`UserError`), before the run has a folder, a schedule of the user's that gives no
    number for the first step."""
    if not isinstance(model, AutoencoderTraining | Net2NetTransformer):
        return
    if model.scheduler_config is not None and is_ours(type(model).configure_optimizers):
        rule = make_rule(model.scheduler_config)
        if not is_ours(type(rule)):
            value_at(rule, 0)


def make_trainer(
    options: Mapping[str, Any],
    lightning_config: DictConfig,
    config: DictConfig,
    run: RunFolder,
    model: pl.LightningModule,
    *,
    validates: bool = True,
) -> pl.Trainer:
    """The Trainer for `model`, with the loggers and callbacks of `lightning_config`; `validates` is
    whether there are data for that.

    Raises:
        UserError: for an argument that the Trainer does not accept.
    """
    arguments = {**trainer_arguments(options), "default_root_dir": str(run.path)}
    logs = options.get("logger") is not False
    arguments["logger"] = _loggers(lightning_config, run) if logs else False
    chosen = _callback_configs(lightning_config, run, model, logs)
    _check_monitor(chosen.get("checkpoints", {}).get("params") or {}, validates)
    arguments["callbacks"] = _callbacks(chosen, lightning_config, config, run)
    _check_places(arguments)
    arguments["plugins"].append(AtomicCheckpointIO(model))
    own_bar = any(isinstance(one, ProgressBar) for one in arguments["callbacks"])
    if arguments.get("enable_progress_bar") is not False and not own_bar:
        arguments["callbacks"].append(RunProgress())
    own_table = any(isinstance(one, ModelSummary) for one in arguments["callbacks"])
    if arguments.get("enable_model_summary") is not False and not own_table:
        arguments["callbacks"].append(Summary())
    try:
        return pl.Trainer(
            **arguments,
            use_distributed_sampler=False,  # the data module's samplers split over processes
        )
    except (
        MisconfigurationException,
        ValueError,
        TypeError,
        OverflowError,
        AttributeError,
        ImportError,
    ) as error:
        raise UserError(f"the Trainer refuses its arguments: {error}") from error


def _check_places(arguments: Mapping[str, Any]) -> None:
    """Refuse (`UserError`), before training, folders that cannot be written to."""
    places = []
    for logger in arguments["logger"] or ():
        of_folder = isinstance(logger, CSVLogger | TensorBoardLogger)
        folder = logger.log_dir if of_folder else logger.save_dir
        places.append((folder, "lightning.logger.params"))
    for one in arguments["callbacks"]:
        if isinstance(one, ModelCheckpoint) and one.dirpath is not None:
            folder = os.path.dirname(os.path.join(one.dirpath, one.filename or ""))
            places.append((folder, "lightning.modelcheckpoint.params"))
    for folder, key in places:
        if folder and "://" not in str(folder):
            check_place(Path(folder), f"set another folder by {key}")


def _merged(first: Any, second: Any) -> Any:
    try:
        return OmegaConf.merge(first, second)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"lightning: its sections do not fit the defaults: {reason}") from None


def check_lightning(lightning_config: DictConfig, run: RunFolder) -> None:
    """Check the configs of logger and callbacks before anything is built.

    Raises:
        UserError: for a class that there is not, and for what is wrong with its parameters.
    """
    check_config(_logger_config(lightning_config, run), "lightning.logger", "logger")
    for name, node in _callback_configs(lightning_config, run).items():
        extra = _SETUP_ARGUMENTS if name == _SETUP else ()
        key = _callback_key(name, lightning_config)
        check_config(node, key, "callback", extra)
        target = get_obj_from_str(node["target"])
        if isinstance(target, type) and issubclass(target, Checkpoints | SetupCallback):
            check_own_places(run, node.get("params") or {}, f"{key}.params")


def _logger_config(lightning_config: DictConfig, run: RunFolder) -> Any:
    """The config's, in which a target may be missing: TensorBoard is the default."""
    default = {
        "target": "taming.training.loggers.Board",
        "params": {"save_dir": str(run.path), "name": "", "version": "tensorboard"},
    }
    own = plain(lightning_config.get("logger"))
    if own and "target" not in own:
        own = _merged(default, own)
    return own or default


def _loggers(lightning_config: DictConfig, run: RunFolder) -> list[Any]:
    """The logger of the config, and a table in a CSV file."""
    # A folder for each start of a run: the CSV logger begins its file anew.
    version = free_version(run.tables, run_time())
    table = {
        "target": "taming.training.loggers.Table",
        "params": {"save_dir": str(run.tables), "name": "", "version": version},
    }
    own = _logger_config(lightning_config, run)
    chosen = instantiate_from_config(own, "lightning.logger", "logger")
    if not isinstance(chosen, Logger):
        raise UserError(f"lightning.logger: {own['target']} is no logger of Lightning's")
    return [chosen, instantiate_from_config(table)]


def _callback_configs(
    lightning_config: DictConfig,
    run: RunFolder,
    model: pl.LightningModule | None = None,
    logs: bool = True,
) -> dict[str, Any]:
    """The configs of callbacks by name: the defaults, and those of the config over them.

    What is null there is off, as is the logging of learning rates where nothing `logs`.
    """
    defaults: dict[str, Any] = {
        "checkpoints": _checkpoint_config(run, model),
        "image_logger": {
            "target": "main.ImageLogger",
            "params": {"batch_frequency": 750, "max_images": 4},
        },
        "learning_rate_logger": {
            "target": "main.LearningRateMonitor",
            "params": {"logging_interval": "step"},
        },
        _SETUP: {"target": "main.SetupCallback"},
    }
    own = lightning_config.get("modelcheckpoint") or {}
    defaults["checkpoints"] = _merged(defaults["checkpoints"], own)
    if not logs:
        del defaults["learning_rate_logger"]  # it would refuse to start
    chosen = plain(_merged(defaults, lightning_config.get("callbacks") or {}))
    return {name: node for name, node in chosen.items() if node is not None}


def _callback_key(name: str, lightning_config: DictConfig) -> str:
    """Where the config of a callback stands."""
    own = lightning_config.get("callbacks") or {}
    if name == "checkpoints" and name not in own:
        return "lightning.modelcheckpoint"
    return f"lightning.callbacks.{name}"


def _callbacks(
    chosen: Mapping[str, Any], lightning_config: DictConfig, config: DictConfig, run: RunFolder
) -> list[Callback]:
    setup = _setup_callback(chosen.get(_SETUP), lightning_config, config, run)
    from_config = [
        _callback(_callback_key(name, lightning_config), node)
        for name, node in chosen.items()
        if name != _SETUP
    ]
    own_callbacks = [
        ExactResume(run.tables, free_version(run.tables, run_time())),
        NamedModel(config.model),
        PositionedNoise(),
        FiniteNumbers(lightning_config.get("skip_nonfinite") or 0, run.checkpoints),
        LoggedNames(),
        FirstBatches(),
        TrainsSomething(),
        FiniteValidation(),
    ]
    checkpoints = [one for one in from_config if isinstance(one, Checkpoints)]
    if not checkpoints:  # the config puts others in their place, which know of epochs alone
        checkpoints = [Checkpoints(dirpath=run.checkpoints, save_top_k=0)]
        from_config += checkpoints
    wait = checkpoints[0].writer.wait
    return [setup, Pace(), ProcessWatch(wait), LoaderWatch(wait), *own_callbacks, *from_config]


def _setup_callback(
    node: Any, lightning_config: DictConfig, config: DictConfig, run: RunFolder
) -> Callback:
    """What makes the run's folders, with the published arguments that its config does not say."""
    key = _callback_key(_SETUP, lightning_config)
    published = {
        "resume": run.resume_from,
        "now": run_time(),
        "logdir": run.path,
        "ckptdir": run.checkpoints,
        "cfgdir": run.config_folder,
        "config": config,
        "lightning_config": lightning_config,
    }
    own = (node or {}).get("params") or {}
    given = {name: value for name, value in published.items() if name not in own}
    callback = None if node is None else _callback(key, node, given)
    if not isinstance(callback, SetupCallback):
        raise UserError(
            f"{key} must be main.SetupCallback, or a subclass: it makes the run's folders"
        )
    return callback


def _callback(key: str, node: Any, extra: Mapping[str, Any] | None = None) -> Callback:
    try:
        callback: Callback = instantiate_with(extra or {}, node, key, "callback")
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"{key}: {error}") from error
    check_hooks(key, callback)
    if isinstance(callback, ModelPruning):  # masked weights are no parameters, which ours need
        raise UserError(f"{key}: ModelPruning cannot be used in training; prune the trained model")
    return callback


def _check_monitor(params: dict[str, Any], validates: bool) -> None:
    """Say by what the best checkpoints are kept; without validation data it is the newest one."""
    monitor = params.get("monitor")
    if monitor is None:
        return
    if is_of_validation(str(monitor)) and not validates:
        rank_zero_info(f"there is no {monitor} without validation data: keeping the newest epoch")
        params.update(monitor=None, save_top_k=1)
        return
    count = params.get("save_top_k", 1)
    if count > 0:
        rank_zero_info(f"keeping the {count} checkpoints with the best {monitor}")


def _checkpoint_config(run: RunFolder, model: pl.LightningModule | None) -> dict[str, Any]:
    params: dict[str, Any] = {
        "dirpath": str(run.checkpoints),
        "filename": "{epoch:06}",
        "enable_version_counter": False,  # last.ckpt stays last.ckpt when a run goes on
    }
    if isinstance(model, Monitored):
        params |= {"monitor": model.monitor, "save_top_k": 3}
    return {"target": "taming.training.checkpoints.Checkpoints", "params": params}

"""The Trainer, with its loggers and callbacks, from the section `lightning` of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins import TorchCheckpointIO
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from taming.checkpoint import read_checkpoint, save_atomic
from taming.config import did_you_mean, instantiate_from_config, plain
from taming.errors import UserError
from taming.models.autoencoder_training import AutoencoderTraining
from taming.modules.losses.base import FirstStageLoss
from taming.training.callbacks import SetupCallback
from taming.training.checkpoints import Checkpoints
from taming.training.logged_rows import free_version
from taming.training.noise import PositionedNoise
from taming.training.numbers import FiniteNumbers
from taming.training.position import ExactResume
from taming.training.processes import LoaderWatch, ProcessWatch
from taming.training.progress import Pace, RunProgress
from taming.training.run_folder import RunFolder, run_time
from taming.training.trainer_options import trainer_options


def prepare_loss(model: pl.LightningModule) -> None:
    """Load what a loss needs of its own, or refuse, before the run has a folder."""
    if isinstance(model, AutoencoderTraining) and isinstance(model.loss, FirstStageLoss):
        try:
            model.loss.prepare()
        except UserError as error:
            key = "model.params.lossconfig.params.perceptual_weight"
            hint = f" ({key}=0)" if "perceptual_weight" in str(error) else ""
            raise UserError(f"{error}{hint}") from None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and reads them without executing anything."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        save_atomic(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)


def make_trainer(
    options: Mapping[str, Any],
    lightning_config: DictConfig,
    config: DictConfig,
    run: RunFolder,
    model: pl.LightningModule,
) -> pl.Trainer:
    """The Trainer for `model`, with the loggers and callbacks of `lightning_config`.

    Raises:
        UserError: for an argument that the Trainer does not have or accept.
    """
    for name in options:
        if name not in trainer_options():
            hint = did_you_mean(name, [*trainer_options(), "gpus"])
            raise UserError(f"lightning.trainer.{name}: the Trainer has no such argument{hint}")
    arguments: dict[str, Any] = {"default_root_dir": str(run.path), **options}
    if arguments.pop("logger", True):
        arguments["logger"] = _loggers(lightning_config, run)
    arguments["callbacks"] = _callbacks(lightning_config, config, run, model)
    own_bar = any(isinstance(one, ProgressBar) for one in arguments["callbacks"])
    if arguments.get("enable_progress_bar") is not False and not own_bar:
        arguments["callbacks"].append(RunProgress())
    try:
        return pl.Trainer(
            **arguments,
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,  # the data module's samplers split over processes
        )
    except (
        MisconfigurationException,
        ValueError,
        TypeError,
        OverflowError,
        ImportError,
    ) as error:
        raise UserError(f"the Trainer refuses its arguments: {error}") from error


def _merged(first: Any, second: Any) -> Any:
    try:
        return OmegaConf.merge(first, second)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"lightning: its sections do not fit the defaults: {reason}") from None


def _loggers(lightning_config: DictConfig, run: RunFolder) -> list[Any]:
    """The logger of the config, TensorBoard's by default, and a table in a CSV file."""
    default = {
        "target": "taming.training.loggers.Board",
        "params": {"save_dir": str(run.path), "name": "", "version": "tensorboard"},
    }
    # A folder for each start of a run: the CSV logger begins its file anew.
    version = free_version(run.tables, run_time())
    table = {
        "target": "taming.training.loggers.Table",
        "params": {"save_dir": str(run.tables), "name": "", "version": version},
    }
    own = plain(lightning_config.get("logger"))
    if own and "target" not in own:
        own = _merged(default, own)
    chosen = instantiate_from_config(own or default, "lightning.logger", "logger")
    return [chosen, instantiate_from_config(table)]


def _callbacks(
    lightning_config: DictConfig, config: DictConfig, run: RunFolder, model: pl.LightningModule
) -> list[Callback]:
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
    }
    own = lightning_config.get("modelcheckpoint") or {}
    defaults["checkpoints"] = _merged(defaults["checkpoints"], own)
    _check_monitor(defaults["checkpoints"].params, config)
    chosen = _merged(defaults, lightning_config.get("callbacks") or {})
    setup = SetupCallback(
        resume=run.resume_from,
        now=run_time(),
        logdir=run.path,
        ckptdir=run.checkpoints,
        cfgdir=run.config_folder,
        config=config,
        lightning_config=lightning_config,
    )
    from_config = [_callback(name, node) for name, node in plain(chosen).items()]
    own_callbacks = [
        ExactResume(run.tables, free_version(run.tables, run_time())),
        PositionedNoise(),
        FiniteNumbers(lightning_config.get("skip_nonfinite") or 0),
    ]
    checkpoints = [one for one in from_config if isinstance(one, Checkpoints)]
    if not checkpoints:  # the config puts others in their place, which know of epochs alone
        checkpoints = [Checkpoints(dirpath=run.checkpoints, save_top_k=0)]
        from_config += checkpoints
    wait = checkpoints[0].writer.wait
    return [setup, Pace(), ProcessWatch(wait), LoaderWatch(wait), *own_callbacks, *from_config]


def _callback(name: str, node: Any) -> Callback:
    key = f"lightning.callbacks.{name}"
    try:
        callback: Callback = instantiate_from_config(node, key, "callback")
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"{key}: {error}") from error
    return callback


def _check_monitor(params: DictConfig, config: DictConfig) -> None:
    """Say by what the best checkpoints are kept; without validation data it is the newest one."""
    monitor = params.get("monitor")
    if monitor is None:
        return
    if str(monitor).startswith("val/") and not OmegaConf.select(config, "data.params.validation"):
        rank_zero_info(f"there is no {monitor} without validation data: keeping the newest epoch")
        params.update(monitor=None, save_top_k=1)
        return
    count = params.get("save_top_k", 1)
    if count > 0:
        rank_zero_info(f"keeping the {count} checkpoints with the best {monitor}")


def _checkpoint_config(run: RunFolder, model: pl.LightningModule) -> dict[str, Any]:
    params: dict[str, Any] = {
        "dirpath": str(run.checkpoints),
        "filename": "{epoch:06}",
        "enable_version_counter": False,  # last.ckpt stays last.ckpt when a run goes on
    }
    if hasattr(model, "monitor"):
        params |= {"monitor": model.monitor, "save_top_k": 3}
    return {"target": "taming.training.checkpoints.Checkpoints", "params": params}

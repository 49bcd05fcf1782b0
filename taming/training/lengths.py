"""How long a run is going to be by its options, and what of its config follows or exceeds that."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from taming.config import instantiate_from_config
from taming.distributed import is_first_process
from taming.lr_scheduler import RunSchedule
from taming.models.reading_order import ReadingOrder
from taming.modules.losses.start import DiscriminatorStart
from taming.run_length import RunLength, percent
from taming.training.data_module import DataModuleFromConfig
from taming.trust import canonical_name

log = logging.getLogger(__name__)

_EPOCHS = 1000  # of a run that says neither steps nor epochs, by Lightning


def check_end(config: DictConfig, options: Mapping[str, Any]) -> None:
    """Refuse (`UserError`), before anything is built, what follows the length of a run that has no
    end; `options` are the Trainer's."""
    if options.get("max_epochs") != -1 or (options.get("max_steps") or -1) >= 0:
        return
    key = "model.params.lossconfig.params.disc_start"
    if isinstance(start := percent(OmegaConf.select(config, key)), float):
        RunLength().steps_of(start, key)
    if OmegaConf.select(config, "model.params.order") == "annealed" and _is_ours(config.model):
        anneal = config.model.params.get("anneal")
        ReadingOrder("annealed", anneal).raster_share(0, RunLength())
    for name in ("scheduler_config", "temperature_scheduler_config"):
        node = OmegaConf.select(config, f"model.params.{name}")
        rule = instantiate_from_config(node, name, "schedule") if node else None
        if isinstance(rule, RunSchedule) and rule.follows_run:
            rule.begin(RunLength(), f"model.params.{name}")


def warn_of_start(
    config: DictConfig, options: Mapping[str, Any], data: pl.LightningDataModule
) -> None:
    """Warn, before the model is built, of a discriminator that the run ends before.

    It is no error: a few steps of any config are tried with `--max_steps`, and some discriminators
    are told to begin so late that they never do.
    """
    loss = OmegaConf.select(config, "model.params.lossconfig")
    params = loss.get("params") if isinstance(loss, DictConfig) else None
    if not params or not _is_ours(loss):
        return
    start, warm_up = percent(params.get("disc_start")), params.get("disc_warmup_steps") or 0
    if start is None or not params.get("disc_factor", 1.0) or options.get("fast_dev_run"):
        return
    run, begins = planned(options, _batches(options, data)), DiscriminatorStart(start, warm_up)
    if run.steps and is_first_process():
        begins.begin(run, global_step=0)
        if line := begins.beyond(run):
            log.warning("%s", line)


def _is_ours(section: DictConfig) -> bool:
    """Whether the `target` of a section is a class of this project."""
    return canonical_name(str(section.get("target"))).startswith("taming.")


def _batches(options: Mapping[str, Any], data: pl.LightningDataModule) -> int | None:
    """Of an epoch, in each process, where they are known."""
    devices, nodes = options.get("devices"), options.get("num_nodes") or 1
    each = len(devices) if isinstance(devices, list) else devices
    if not isinstance(data, DataModuleFromConfig) or not isinstance(each, int) or each < 1:
        return None
    return data.batches_per_epoch(each * nodes)


def planned(options: Mapping[str, Any], batches: int | None) -> RunLength:
    """The length that the Trainer's options give a run whose epochs have so many batches."""
    most, epochs = (options.get(name) for name in ("max_steps", "max_epochs"))
    most = None if most in (None, -1) else most
    if most is None and epochs is None:
        epochs = _EPOCHS
    limit = options.get("limit_train_batches")
    if batches is not None and limit is not None:
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    if batches is None:
        return RunLength(most)
    per_epoch = math.ceil(batches / (options.get("accumulate_grad_batches") or 1))
    of_epochs = [] if epochs in (None, -1) else [epochs * per_epoch]
    ends = [*of_epochs, *([] if most is None else [most])]
    return RunLength(min(ends, default=None), per_epoch)

"""How long a run is going to be by its options, and what of its config follows or exceeds that."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from taming.config import instantiate_from_config
from taming.distributed import is_first_process
from taming.lr_scheduler import RunSchedule
from taming.models.reading_order import ReadingOrder
from taming.models.run_length import limit
from taming.modules.losses.start import DiscriminatorStart
from taming.run_length import RunLength, percent
from taming.training.data_module import DataModuleFromConfig
from taming.trust import canonical_name

log = logging.getLogger(__name__)

_EPOCHS = 1000  # of a run that says neither steps nor epochs, by Lightning


def check_end(config: DictConfig, options: Mapping[str, Any]) -> None:
    """Refuse (`UserError`), before anything is built, what follows the length of a run that has no
    end, and schedules that contradict themselves or its steps; `options` are the Trainer's."""
    run = planned(options, None, config)
    ends = _epochs(options, config) is not None or run.steps is not None
    for key, rule in _rules(config):
        if rule.follows_run and (run.steps or not ends):
            rule.begin(run, key)
    if ends:
        return
    key = "model.params.lossconfig.params.disc_start"
    if isinstance(start := percent(OmegaConf.select(config, key)), float):
        RunLength().steps_of(start, key)
    if OmegaConf.select(config, "model.params.order") == "annealed" and _is_ours(config.model):
        anneal = config.model.params.get("anneal")
        ReadingOrder("annealed", anneal).raster_share(0, RunLength())


def _rules(config: DictConfig) -> Iterator[tuple[str, RunSchedule]]:
    """The schedules of a config that are of this project, new ones, by key."""
    for name in ("scheduler_config", "temperature_scheduler_config"):
        node, key = OmegaConf.select(config, f"model.params.{name}"), f"model.params.{name}"
        if isinstance(node, DictConfig) and _is_ours(node):
            rule = instantiate_from_config(node, key, "schedule")
            if isinstance(rule, RunSchedule):
                yield key, rule


def check_length(
    config: DictConfig, options: Mapping[str, Any], data: pl.LightningDataModule
) -> None:
    """What of a config does not fit the length of the run, before the model is built.

    It is no error that the run ends before a discriminator begins, or a schedule is over, and is
    warned of: a few steps of any config are tried with `--max_steps`, and some discriminators are
    told to begin so late that they never do.

    Raises:
        UserError: for a schedule of which the run leaves nothing.
    """
    run = planned(options, _batches(options, data), config)
    if options.get("fast_dev_run") or not run.steps:
        return
    for key, rule in _rules(config):
        if rule.follows_run:
            rule.begin(run, key)
        if (line := rule.beyond(run)) and is_first_process():
            log.warning("%s: %s", key, line)
    if is_first_process():
        _warn_of_start(config, run)


def _warn_of_start(config: DictConfig, run: RunLength) -> None:
    loss = OmegaConf.select(config, "model.params.lossconfig")
    params = loss.get("params") if isinstance(loss, DictConfig) else None
    if not params or not _is_ours(loss):
        return
    start, warm_up = percent(params.get("disc_start")), params.get("disc_warmup_steps") or 0
    if start is None or not params.get("disc_factor", 1.0):
        return
    begins = DiscriminatorStart(start, warm_up)
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


def planned(
    options: Mapping[str, Any], batches: int | None, config: DictConfig | None = None
) -> RunLength:
    """The length that the Trainer's options give a run whose epochs have so many batches."""
    share = options.get("limit_train_batches")
    if batches is not None and share is not None:
        batches = int(batches * share) if isinstance(share, float) else min(batches, share)
    most, accumulated = limit(options.get("max_steps")), options.get("accumulate_grad_batches")
    return RunLength.of_limits(most, _epochs(options, config), batches, accumulated or 1)


def _epochs(options: Mapping[str, Any], config: DictConfig | None) -> int | None:
    """How many there are at most, as Lightning has it; None: no limit."""
    epochs, most = options.get("max_epochs"), limit(options.get("max_steps"))
    if epochs is None and most is None and not _ends_by_time(options, config):
        return _EPOCHS
    return limit(epochs)


def _ends_by_time(options: Mapping[str, Any], config: DictConfig | None) -> bool:
    """Whether there is a Timer: that of `max_time`, or one in `lightning.callbacks`."""
    callbacks = OmegaConf.select(config, "lightning.callbacks") if config is not None else None
    targets = [one.get("target") for one in (callbacks or {}).values() if one]
    return bool(options.get("max_time")) or any(
        str(target).rpartition(".")[2] == "Timer" for target in targets
    )

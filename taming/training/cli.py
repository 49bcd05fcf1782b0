"""The command line of main.py: from arguments to a trained model."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_only

from taming.atomic_files import make_new_folder
from taming.config import (
    check_config,
    instantiate_from_config,
    load_config,
    plain,
    without_checkpoint_paths,
)
from taming.data.codes import with_codes
from taming.errors import UserError, command
from taming.freed_memory import keep_freed_memory
from taming.limits import check_sizes
from taming.training.arguments import parse_arguments
from taming.training.code_checks import check_codes
from taming.training.data_module import (
    DataModuleFromConfig,
    batch_size_of,
    build_data,
    splits_of,
)
from taming.training.ends import final_test, fit, say_what_was_checked
from taming.training.first_items import check_first_items
from taming.training.hooks import check_model_hooks
from taming.training.lengths import check_end, check_length
from taming.training.messages import set_up_messages
from taming.training.monitors import check_monitors
from taming.training.new_options import check_unchanged
from taming.training.numbers import check_skip
from taming.training.run_configs import KEPT_FLAGS, read_configs
from taming.training.run_folder import (
    RunFolder,
    check_resumable,
    claimed,
    further,
    new_run,
    one_start,
    resumed_run,
)
from taming.training.slurm import begun_before
from taming.training.stopping import requests
from taming.training.strategies import check_strategy
from taming.training.trainer import (
    check_lightning,
    make_trainer,
    prepare_loss,
    prepare_teacher,
    try_schedule,
)
from taming.training.trainer_options import (
    check_validation_interval,
    checked_options,
    move_manual_options,
    resolve_devices,
)
from taming.trust import canonical_name


def learning_rate(
    config: DictConfig, accumulate: int, devices: int, batch_size: int, scale: bool
) -> float:
    """accumulated batches x devices x batch size x base rate, printed with its factors."""
    base = _base_rate(config)
    if not scale:
        rank_zero_info(f"learning rate {base:.2e} (base_learning_rate, not scaled)")
        return float(base)
    rate = accumulate * devices * batch_size * base
    rank_zero_info(
        f"learning rate {rate:.2e} = {accumulate} (accumulate_grad_batches) * {devices} (devices) "
        f"* {batch_size} (batch_size) * {base:.2e} (base_learning_rate)"
    )
    return rate


def _base_rate(config: DictConfig) -> float:
    base = config.get("base_learning_rate")
    if not isinstance(base, int | float) or not 0 <= base <= 1:
        raise UserError(
            f"model.base_learning_rate must be a number from 0 to 1; it is {base} (it is "
            "multiplied by batch size, devices and accumulated batches, unless --scale_lr false)"
        )
    return base


def _open_run(args: argparse.Namespace) -> RunFolder:
    if args.resume:
        if args.name:
            raise UserError(
                "-n/--name and -r/--resume cannot go together: a resumed run has a name"
            )
        return resumed_run(args.resume, args.base)
    run = new_run(args.name, args.base, args.postfix, args.project)
    if (begun := begun_before(run.path)) is not None:
        rank_zero_info(f"SLURM has queued this job again: it goes on with {begun}")
        return resumed_run(begun, args.base)
    return run


def _keep_flags(args: argparse.Namespace, lightning_config: DictConfig, run: RunFolder) -> None:
    """Set the flags that were not given to those of the run, and keep them for the next time."""
    for name, default in KEPT_FLAGS.items():
        flag, kept = getattr(args, name), lightning_config.get(name)
        if kept is not None and type(kept) is not type(default):
            kind = type(default).__name__
            raise UserError(f"lightning.{name} must be of type {kind}; it is {kept}")
        if name == "seed" and run.resume_from and None not in (flag, kept) and flag != kept:
            raise UserError(
                f"--seed {flag}: the seed of a run cannot change, and this one has {kept}; leave "
                "--seed out, or start a new run"
            )
        value = next(value for value in (flag, kept, default) if value is not None)
        setattr(args, name, value)
        lightning_config[name] = value


def _check_going_on(config: DictConfig, model: pl.LightningModule, run: RunFolder) -> None:
    stored = load_config((), stored=run.stored, used=("model",))
    check_unchanged(stored, config)
    if run.resume_from and check_resumable(model, run.resume_from):
        prepare_loss(model)


DEBUG_RUNS = Path("logs") / "debug_runs"
# What no model of this project can do with its loss.
_CONDITIONAL = "disc_conditional"


def _check_trainable(config: DictConfig, train: bool) -> None:
    """Refuse, before anything is built, what only the first step of training would find."""
    if train and _is_ours(config.get("data")) and not OmegaConf.select(config, "data.params.train"):
        raise UserError("data.params.train is missing: it names the dataset to train on")
    loss = OmegaConf.select(config, "model.params.lossconfig")
    if _is_ours(config.model) and _is_ours(loss) and (loss.get("params") or {}).get(_CONDITIONAL):
        raise UserError(
            f"model.params.lossconfig.params.{_CONDITIONAL}: {config.model.target} gives its loss "
            "no condition; set it to false"
        )


def _is_ours(node: Any) -> bool:
    """Whether a config is of a class of this project, of which it is known what it does."""
    target = str(node.get("target")) if isinstance(node, DictConfig) else ""
    return canonical_name(target).startswith("taming.")


def _model_config(config: DictConfig, run: RunFolder) -> Any:
    return without_checkpoint_paths(config.model) if run.resume_from else config.model


def _data_config(config: DictConfig) -> Any:
    if "data" not in config:
        raise UserError("the configs have no 'data' section: add data.target and data.params")
    return with_codes(config).data


def _trainer_options(
    lightning_config: DictConfig, flags: Mapping[str, Any], run: RunFolder
) -> dict[str, Any]:
    """The Trainer's arguments: those of the configs, and of the flags, which the run keeps."""
    options = {**plain(lightning_config.get("trainer") or {}), **flags}
    lightning_config.trainer = options
    options = checked_options(resolve_devices(options))
    check_lightning(lightning_config, run)
    return options


def _check_configs(
    config: DictConfig, options: Mapping[str, Any], run: RunFolder, train: bool
) -> None:
    """What configs say by themselves, before anything is built."""
    check_config(_data_config(config), "data", "data module")
    check_config(_model_config(config, run), "model", "module")
    _check_trainable(config, train)
    _base_rate(config.model)
    check_end(config, options)
    check_strategy(options, config.model.get("target"), run.resume_from)


def _build(
    config: DictConfig, options: Mapping[str, Any], run: RunFolder, train: bool
) -> tuple[pl.LightningDataModule, pl.LightningModule]:
    """The data, and a model that fits them: before a run that could not be trained has a folder."""
    data = build_data(_data_config(config))
    if train:  # only now it is known how long an epoch is
        check_length(config, options, data)
    model = instantiate_from_config(_model_config(config, run), "model", "module")
    check_model_hooks("model", model)
    if run.resume_from and train:
        _check_going_on(config, model, run)
    check_codes(data, model, run.resume_from)
    begins = train and not run.resume_from
    if begins:  # a resumed model has no weights yet to compare
        prepare_teacher(model)
    check_first_items(data, model)
    if begins:
        prepare_loss(model)
        try_schedule(model)
    return data, model


def _check_trainer(
    trainer: pl.Trainer,
    options: Mapping[str, Any],
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    *,
    tests: bool,
) -> None:
    """What depends on the callbacks, and on how many devices share the data."""
    check_monitors(trainer.callbacks, model, data)  # type: ignore[attr-defined]
    if isinstance(data, DataModuleFromConfig):
        data.check_lengths(trainer.world_size, ("test",) if tests else ())
        check_validation_interval(options, data.batches_per_epoch(trainer.world_size))


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run main.py with `argv` (default: the command line)."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for classes of the user's own
    set_up_messages()
    args, flags, overrides = parse_arguments(argv)
    with requests.handled(), one_start():
        run = _open_run(args)
        config, lightning_config = read_configs(run, args.base, overrides)
        _keep_flags(args, lightning_config, run)
        check_skip(args.skip_nonfinite)
        check_sizes(seed=args.seed, least=0, most=2**32 - 1)
        pl.seed_everything(args.seed, workers=True)
        options = _trainer_options(lightning_config, flags, run)
        _check_configs(config, options, run, args.train)
        data, model = _build(config, options, run, args.train)
        with claimed(run) if args.train else nullcontext(run) as run:
            accumulate = options.get("accumulate_grad_batches") or 1
            options = move_manual_options(options, model)
            validates = "validation" in splits_of(data) and options.get("limit_val_batches") != 0
            trainer = make_trainer(
                options, lightning_config, config, run, model, validates=validates
            )
            _check_trainer(trainer, options, model, data, tests=not args.no_test)
            batch_size = batch_size_of(data) if args.scale_lr else 1
            model.learning_rate = learning_rate(  # type: ignore[assignment]  # of any module
                config.model, accumulate, trainer.world_size, batch_size, args.scale_lr
            )
            run = _to_be_moved(run) if args.debug else run
            try:
                _train_and_test(args, _keeping_memory(trainer), model, data, run)
            finally:
                _move(run)


def _keeping_memory(trainer: pl.Trainer) -> pl.Trainer:
    """`trainer`; where it trains on a processor, this process keeps freed memory from now on."""
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def _train_and_test(
    args: argparse.Namespace,
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    run: RunFolder,
) -> None:
    last = run.resume_from
    more = further(last, trainer.max_epochs, trainer.max_steps) if last and args.train else ""
    if more:
        rank_zero_info(
            f"{run.path} is finished: max_epochs {trainer.max_epochs}, max_steps "
            f"{trainer.max_steps}; to train it further, give more of them, for example -r "
            f"{shlex.quote(str(run.path))} -t True {more}"
        )
    elif args.train:
        fit(trainer, model, data, run)
        last = None
    tests = not args.no_test and "test" in splits_of(data)
    if tests and requests.stop is None and (args.train or last):  # or the weights are random
        final_test(trainer, model, data, last)
    if not args.train:
        say_what_was_checked(model, data, args.words)


def _to_be_moved(run: RunFolder) -> RunFolder:
    """`run`, which ends in the folder of debugging runs."""
    folder = DEBUG_RUNS / run.path.name
    return run if run.path.resolve() == folder.resolve() else replace(run, moves_to=folder)


@rank_zero_only
def _move(run: RunFolder) -> None:
    if run.moves_to is not None and run.path.is_dir():
        target = make_new_folder(run.moves_to)
        os.replace(run.path, target)  # an empty folder
        rank_zero_info(f"moved the run to {target}")

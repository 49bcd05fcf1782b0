"""The command line of main.py: from arguments to a trained model."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_only

from taming.checkpoint import expand_stages
from taming.command_line import Parser, parse_switch
from taming.config import (
    did_you_mean,
    instantiate_from_config,
    load_config,
    plain,
    without_checkpoint_paths,
)
from taming.errors import UserError, command
from taming.training.data_module import DataModuleFromConfig
from taming.training.run_folder import RunFolder, check_resumable, new_run, resumed_run
from taming.training.trainer import (
    make_trainer,
    move_manual_options,
    parse_option,
    resolve_devices,
    trainer_options,
)


def make_parser() -> argparse.ArgumentParser:
    """The flags of main.py; `split_arguments` reads the Trainer's arguments and the overrides."""
    parser = Parser(
        prog="main.py",
        description="Train a first stage or a transformer from YAML configs.",
        epilog="Further arguments: --key value for any argument of the Lightning Trainer, "
        "--gpus 0, | 0,1 | 2, and key.path=value to override the configs.",
        allow_abbrev=False,
    )
    switch: dict[str, Any] = {"type": parse_switch, "nargs": "?", "const": True}
    parser.add_argument("-n", "--name", help="name of the run; default: that of the first config")
    parser.add_argument("-r", "--resume", help="go on with a run: its folder or a checkpoint of it")
    parser.add_argument(
        "-b",
        "--base",
        nargs="*",
        default=[],
        metavar="config.yaml",
        help="configs, merged from left to right",
    )
    parser.add_argument("-t", "--train", default=False, help="train", **switch)
    parser.add_argument("--no-test", default=False, help="do not test after training", **switch)
    parser.add_argument("-p", "--project", help="put the run in a folder of this name under logs/")
    parser.add_argument(
        "-d", "--debug", default=False, help="move the run to logs/debug_runs/ at its end", **switch
    )
    parser.add_argument("-s", "--seed", type=int, default=23, help="seed of all random numbers")
    parser.add_argument("-f", "--postfix", default="", help="appended to the run's name")
    parser.add_argument(
        "--scale_lr",
        default=True,
        **switch,
        help="multiply the base learning rate by devices, batch size and accumulated batches",
    )
    parser.add_argument("--gpus", help="0, for the first GPU; 0,1 for two of them; 2 for any two")
    return parser


def split_arguments(rest: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """`--key value` options of the Trainer and `key.path=value` overrides, of the other arguments.

    Raises:
        UserError: for an option that the Trainer does not have.
    """
    options: dict[str, Any] = {}
    overrides: list[str] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            overrides.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if name not in trainer_options():
            flags = [action.dest for action in make_parser()._actions]
            hint = did_you_mean(name, [*trainer_options(), *flags])
            raise UserError(f"there is no argument --{name}{hint}")
        if not equals:
            bare = not words or words[0].startswith("--") or "=" in words[0]
            value = "true" if bare else words.pop(0)
        options[name] = parse_option(name, value)
    return options, overrides


def parse_arguments(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, dict[str, Any], list[str]]:
    """The flags of main.py, the Trainer's options, and the overrides of the configs."""
    args, rest = make_parser().parse_known_args(argv)
    flags, overrides = split_arguments(rest)
    if args.gpus is not None:
        flags["gpus"] = args.gpus
    # `--base a.yaml key=value`: the list of files ends where overrides begin.
    overrides = [word for word in args.base if "=" in word] + overrides
    args.base = [Path(word) for word in args.base if "=" not in word]
    return args, flags, overrides


def learning_rate(
    config: DictConfig, accumulate: int, devices: int, batch_size: int, scale: bool
) -> float:
    """accumulated batches x devices x batch size x base rate, printed with its factors."""
    base = config.get("base_learning_rate")
    if not isinstance(base, int | float):
        raise UserError(f"model.base_learning_rate must be a number; it is {base}")
    if not scale:
        rank_zero_info(f"learning rate {base:.2e} (base_learning_rate, not scaled)")
        return float(base)
    rate = accumulate * devices * batch_size * base
    rank_zero_info(
        f"learning rate {rate:.2e} = {accumulate} (accumulate_grad_batches) * {devices} (devices) "
        f"* {batch_size} (batch_size) * {base:.2e} (base_learning_rate)"
    )
    return rate


def _open_run(args: argparse.Namespace) -> RunFolder:
    if args.resume:
        if args.name:
            raise UserError(
                "-n/--name and -r/--resume cannot go together: a resumed run has a name"
            )
        return resumed_run(args.resume, args.base)
    return new_run(args.name, args.base, args.postfix, args.project)


def _read_configs(run: RunFolder, overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """The merged config of model and data, and the section `lightning`."""
    config = load_config(run.configs, overrides)
    if "model" not in config:
        raise UserError("the configs have no 'model' section: add model.target and model.params")
    expand_stages(config)
    return config, OmegaConf.create(config.pop("lightning", None) or {})


def _build_model(config: DictConfig, run: RunFolder) -> Any:
    model_config = without_checkpoint_paths(config.model) if run.resume_from else config.model
    return instantiate_from_config(model_config, key="model")


def _build_data(config: DictConfig) -> DataModuleFromConfig:
    if "data" not in config:
        raise UserError("the configs have no 'data' section: add data.target and data.params")
    data = instantiate_from_config(config.data, key="data")
    data.prepare_data()
    data.setup()
    return data


# Warnings of Lightning about what is intended here.
_EXPECTED = (
    r".*treespec.*",  # its own use of torch
    r".*module\(s\) in eval mode.*",  # the frozen stages
    r"Checkpoint directory .* exists and is not empty",  # a resumed run
)


def _set_up_messages() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith("💡")  # advertisements
    )
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run main.py with `argv` (default: the command line)."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for classes of the user's own
    _set_up_messages()
    args, flags, overrides = parse_arguments(argv)
    run = _open_run(args)
    pl.seed_everything(args.seed, workers=True)
    config, lightning_config = _read_configs(run, overrides)
    options = {**plain(lightning_config.get("trainer") or {}), **flags}
    lightning_config.trainer = options
    options = resolve_devices(options)
    data = _build_data(config)
    model = _build_model(config, run)
    if run.resume_from and args.train:
        check_resumable(model, run.resume_from)
    accumulate = options.get("accumulate_grad_batches") or 1
    options = move_manual_options(options, model)
    trainer = make_trainer(options, lightning_config, config, run, model)
    model.learning_rate = learning_rate(
        config.model, accumulate, trainer.world_size, data.batch_size, args.scale_lr
    )
    try:
        _train_and_test(args, trainer, model, data, run)
    finally:
        if args.debug:
            _move_to_debug_runs(run)


def _train_and_test(
    args: argparse.Namespace,
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: DataModuleFromConfig,
    run: RunFolder,
) -> None:
    if args.train:
        trainer.fit(model, data, ckpt_path=str(run.resume_from) if run.resume_from else None)
        rank_zero_info(
            f"trained to step {trainer.global_step}; the run is in {run.path}, go on with "
            f"-r {run.path}"
        )
    if not args.no_test and "test" in data.datasets and not trainer.interrupted:
        trainer.test(model, data)


@rank_zero_only
def _move_to_debug_runs(run: RunFolder) -> None:
    if run.path.is_dir():
        target = Path("logs") / "debug_runs" / run.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(run.path, target)
        rank_zero_info(f"moved the run to {target}")

"""The Trainer's arguments: which there are, what may be given, and what it means here."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from taming.config_values import Misfit, Range, fitted
from taming.devices import available_cpus
from taming.distributed import is_first_process
from taming.errors import UserError, shorten
from taming.shipped import script
from taming.training.option_values import duration, listed_devices
from taming.training.refused_options import check_arguments

log = logging.getLogger(__name__)

# Arguments that are objects, which no flag can give, or are set here.
_OBJECTS = {"self", "callbacks", "plugins", "use_distributed_sampler"}


def trainer_options() -> dict[str, Any]:
    """Names and type annotations of the Trainer's arguments that a flag or YAML can set."""
    hints = typing.get_type_hints(pl.Trainer.__init__)
    parameters = inspect.signature(pl.Trainer.__init__).parameters
    hints["logger"] = bool | None  # whether to log; loggers have a section of their own
    return {name: hints.get(name, Any) for name in parameters if name not in _OBJECTS}


def nondefault_trainer_args(opt: argparse.Namespace) -> list[str]:
    """Those of the Trainer's arguments that `opt` has with another value than the default."""
    parameters = inspect.signature(pl.Trainer.__init__).parameters
    given = vars(opt)
    return sorted(
        name
        for name in trainer_options()
        if name in given and given[name] != parameters[name].default
    )


def parse_option(name: str, text: str) -> Any:
    """The value of `--name text`, of a type that the Trainer's argument accepts.

    Raises:
        UserError: if the text is of no such type.
    """
    value = _literal(text)
    accepted = _plain_types(trainer_options()[name])
    if isinstance(value, bool) and bool not in accepted and int in accepted:
        value = text
    if isinstance(value, int) and not isinstance(value, bool) and int not in accepted:
        value = float(value) if float in accepted else text
    if isinstance(value, float) and value.is_integer() and float not in accepted:
        value = int(value)
    if value is not None and type(value) not in accepted:
        if str not in accepted:
            names = " or ".join(sorted(kind.__name__ for kind in accepted))
            raise UserError(f"--{name} takes {names}, not '{text}'")
        value = text
    return value


def _literal(text: str) -> Any:
    words = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    parts = [part for part in text.split(",") if part]
    if "," in text and all(part.strip().lstrip("-").isdigit() for part in parts):
        return [int(part) for part in parts]
    return text


def _plain_types(annotation: Any) -> set[type]:
    """Those of bool, int, float, str and list that an annotation contains."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_plain_types(part) for part in typing.get_args(annotation)))
    if origin is typing.Literal:
        return {type(value) for value in typing.get_args(annotation)}
    if isinstance(annotation, type) or origin is not None:
        base = origin or annotation
        if base in (bool, int, float, str, list):
            return {base}
        return {str} if base is Path else set()
    return {bool, int, float, str, list}


def resolve_devices(options: dict[str, Any]) -> dict[str, Any]:
    """Turn `gpus` ("0,", "0,1", "2", "-1", a number, a list) into accelerator and devices, and
    `devices` of a text into a number or a list.

    Without any of these, the CPU is used.

    Raises:
        UserError: if `gpus` or `devices` cannot be read, or there is no GPU.
    """
    options = dict(options)
    if isinstance(named := options.get("devices"), str) and named != "auto":
        options["devices"] = listed_devices(named, "--devices")
    gpus = options.pop("gpus", None)
    if gpus is None:
        if "accelerator" not in options and "devices" not in options:
            options |= {"accelerator": "cpu", "devices": 1}
        return options
    devices = listed_devices(gpus, "--gpus")
    if not devices:
        if torch.cuda.is_available() and is_first_process():
            log.info("--gpus %s is no GPU: the CPU trains; the first GPU is --gpus '0,'", gpus)
        return {**options, "accelerator": "cpu", "devices": 1}
    if not torch.cuda.is_available():
        raise UserError(
            f"--gpus {gpus} asks for a GPU, but torch finds none on this machine; leave --gpus out "
            "to train on the CPU, or pass --accelerator mps on a Mac"
        )
    return {**options, "accelerator": "gpu", "devices": devices}


_RANGES = {"accumulate_grad_batches": Range(1), "check_val_every_n_epoch": Range(1)}
_RANGES |= {"gradient_clip_val": Range(0), "val_check_interval": Range(above=0)}
_RANGES |= {"max_epochs": Range(-1), "max_steps": Range(-1), "num_sanity_val_steps": Range(-1)}
_RANGES |= dict.fromkeys(("min_epochs", "min_steps", "log_every_n_steps"), Range(0))
_RANGES |= dict.fromkeys(("limit_train_batches", "limit_val_batches"), Range(0))
_RANGES |= dict.fromkeys(("limit_test_batches", "limit_predict_batches"), Range(0))
_RANGES |= dict.fromkeys(("overfit_batches", "fast_dev_run"), Range(0))
_RANGES |= {"reload_dataloaders_every_n_epochs": Range(0), "num_nodes": Range(1)}
# Of Lightning's, those that do not cast the weights.
_PRECISIONS: tuple[str, ...] = ("32", "16", "bf16", "32-true", "16-mixed", "bf16-mixed")


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the types of their hints, without those that end in errors, or in nothing.

    Raises:
        UserError: for the first of these.
    """
    check_arguments(options, trainer_options())
    options = {name: _checked(name, value) for name, value in options.items()}
    _check_processes(options)
    _check_length(options)
    if str(options.get("precision")) in ("16", "16-mixed") and not _has_accelerator(options):
        raise UserError(
            f"--precision is {options['precision']}, in which a CPU does not train; use bf16-mixed"
        )
    return options


def _check_length(options: Mapping[str, Any]) -> None:
    """Refuse a run that is to be longer than it may be."""
    for unit in ("steps", "epochs"):
        least, most = options.get(f"min_{unit}") or 0, options.get(f"max_{unit}")
        if most is not None and 0 <= most < least:
            raise UserError(
                f"--min_{unit} is {least}, above --max_{unit}, which is {most}: raise the latter, "
                "or lower the former"
            )


def _checked(name: str, value: Any) -> Any:
    if name == "max_time":
        return duration(value)
    if isinstance(value, Mapping):
        raise UserError(f"lightning.trainer.{name} is a mapping; give a number, text or list")
    if name == "strategy" and re.search("spawn|fork|notebook", str(value)):
        raise UserError(
            f"--strategy is {value}; runs start their processes anew: it is ddp or auto"
        )
    if name == "strategy" and re.match("fsdp(?!2$)|model_parallel|deepspeed", str(value)):
        raise UserError(
            f"--strategy is {value}; weights of a transformer are divided by fsdp2, and first "
            "stages train with ddp"
        )
    if name == "precision" and value is not None and str(value) not in _PRECISIONS:
        raise UserError(f"--precision is {value}; it is 32, bf16-mixed or 16-mixed")
    try:
        value = fitted(value, trainer_options()[name])
    except Misfit as misfit:
        raise UserError(f"--{name} takes {misfit}, not {shorten(value)}") from None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and name in _RANGES and not _RANGES[name].holds(value):
        raise UserError(f"--{name} is {value}; it must be {_RANGES[name]}")
    return value


def _check_processes(options: Mapping[str, Any]) -> None:
    """Refuse processes that would only wait for others, more than there are GPUs, and many more
    than there are CPUs."""
    _check_gpus(options)
    devices, nodes = options.get("devices"), options.get("num_nodes") or 1
    most = max(8, 4 * available_cpus())
    if isinstance(devices, list) and options.get("accelerator") == "cpu":
        named = ",".join(map(str, devices))
        raise UserError(
            f"--devices {named}: CPUs have no numbers; say how many processes, as in --devices 2"
        )
    if isinstance(devices, int) and not _has_accelerator(options):
        name = f"lightning.trainer.devices is {devices}"
        if devices < 1:
            raise UserError(f"{name}: it must be from 1 on")
        if devices > most:
            raise UserError(f"{name}: at most {most} on these CPUs (four for each, or 8)")
    launchers = {"MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_RANK"}
    if nodes != 1 and not launchers & os.environ.keys():
        raise UserError(
            f"lightning.trainer.num_nodes is {nodes}: start {script('main')} on each "
            "with torchrun or SLURM"
        )
    _check_started(len(devices) if isinstance(devices, list) else devices, nodes)


def _check_started(each: Any, nodes: int) -> None:
    """Refuse processes that another program has started, if they are not `each` on all `nodes`,
    where that is a number."""
    started, here, launcher = _started_processes()
    if not isinstance(each, int) or each < 0:
        return
    if started and (started != each * nodes or here not in (None, each)):
        on_this = f", {here} of them on this node" if here not in (None, started) else ""
        raise UserError(
            f"{launcher} has started {started} processes{on_this}, and the run is for {each} "
            f"devices on each of {nodes} nodes; set --gpus (or --accelerator and --devices) to "
            "those of a node, and --num_nodes"
        )


def _check_gpus(options: Mapping[str, Any]) -> None:
    """Refuse GPUs that are not there, or named twice."""
    devices = options.get("devices")
    present = torch.cuda.device_count()
    # Lightning's `auto`, which is its default, takes GPUs where there are some.
    if options.get("accelerator") not in ("gpu", "cuda", "auto", None) or not present:
        return
    numbers = [int(number) for number in devices] if isinstance(devices, list) else []
    wanted = devices if isinstance(devices, int) else max(numbers, default=0) + 1
    if wanted > present or len(set(numbers)) < len(numbers) or min(numbers, default=0) < 0:
        named = ",".join(map(str, numbers)) or wanted
        has = "1 GPU, number 0" if present == 1 else f"{present} GPUs, 0 to {present - 1}"
        raise UserError(f"--gpus {named}: this machine has {has}; name each at most once")


def _started_processes() -> tuple[int, int | None, str]:
    """How many processes of this run another program has started, how many of them here, if it
    says so, and its name; 0 if none has.

    Raises:
        UserError: if SLURM has started them in a way that Lightning cannot use.
    """
    if TorchElasticEnvironment.detect():
        here = os.environ.get("LOCAL_WORLD_SIZE")
        return int(os.environ["WORLD_SIZE"]), int(here) if here else None, "torchrun"
    try:
        if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():
            nodes = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # 2(x3); 3,2 if they differ
            alike = re.fullmatch(r"(\d+)(\(x\d+\))?", nodes)
            return int(os.environ["SLURM_NTASKS"]), int(alike[1]) if alike else None, "SLURM"
    except RuntimeError as error:
        raise UserError(f"SLURM: {' '.join(str(error).split())}") from None
    return 0, None, ""


def check_validation_interval(options: Mapping[str, Any], batches: int | None) -> None:
    """Refuse to validate after more batches than the epoch has, of `batches`, if that is known.

    Raises:
        UserError: as Lightning would when training has begun.
    """
    interval, limit = options.get("val_check_interval"), options.get("limit_train_batches")
    across = options.get("check_val_every_n_epoch", 1) is None
    if batches is None or across or type(interval) is not int:
        return
    if limit is not None:
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    if interval > batches:
        raise UserError(
            f"--val_check_interval is {interval}, but an epoch has {batches} batches; to count "
            "them over epochs, add --check_val_every_n_epoch none"
        )


def _has_accelerator(options: Mapping[str, Any]) -> bool:
    found = torch.cuda.is_available() or torch.backends.mps.is_available()
    return found and options.get("accelerator") != "cpu"


def move_manual_options(options: dict[str, Any], model: pl.LightningModule) -> dict[str, Any]:
    """Set accumulation and clipping on a model that steps its optimizers itself.

    The Trainer would refuse these options; the others are returned.

    Raises:
        UserError: for an unknown algorithm of clipping.
    """
    if model.automatic_optimization:
        return options
    options = dict(options)
    algorithm = options.get("gradient_clip_algorithm")
    if algorithm not in (None, "norm", "value"):
        raise UserError(f"--gradient_clip_algorithm is 'norm' or 'value', not '{algorithm}'")
    for name in ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"):
        if options.get(name) is not None:
            setattr(model, name, options[name])
        options.pop(name, None)
    return options

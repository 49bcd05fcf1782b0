"""Flags that the scripts share which load a run: the run, its data, and how to sample from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from omegaconf import DictConfig

from taming.checkpoint import Run
from taming.command_line import (
    Parser,
    add_flags,
    add_trust_flag,
    add_weight_flags,
    flag,
    from_flags,
    parse,
)
from taming.data.checks import damage_found_later
from taming.data.seeding import SeededDataset
from taming.devices import choose_dtype, device_of_command
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling.load import data_config, load_transformer, open_dataset
from taming.sampling.plan import MOST_SAMPLES
from taming.sampling.settings import SampleSettings

T = TypeVar("T")


class LoadedRun(NamedTuple):
    """A transformer in eval mode, its run and global step, and its precision."""

    model: Net2NetTransformer
    run: Run
    step: int
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Which run a script loads, where that computes, and where files go."""

    resume: str = flag(MISSING, "the run: its folder or checkpoint", "-r")
    base: tuple[str, ...] = flag(
        (), "merged over the run's configs", "-b", metavar="YAML", nargs="*"
    )
    outdir: str | None = flag(None, "where files go, instead of the run's folder", "-o")
    device: str = flag("auto", "auto, cuda, cuda:1, mps or cpu")
    precision: str = flag("fp32", "of the transformer: fp32, bf16 or auto")
    overrides: tuple[str, ...] = ()

    def chosen_device(self) -> torch.device:
        """Where the script computes."""
        return device_of_command(self.device)

    def load(self, base: Sequence[str] | None = None) -> LoadedRun:
        """The run's transformer, with the YAMLs `base` in place of `--base`."""
        device = self.chosen_device()
        dtype = choose_dtype(self.precision, device)
        base = self.base if base is None else base
        model, run, step = load_transformer(self.resume, base, device, self.overrides, dtype)
        return LoadedRun(model, run, step, dtype)


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Which data the conditions come from: the run's own by default."""

    config: tuple[str, ...] = flag((), "merged over --base's", "-c", metavar="YAML", nargs="+")
    ignore_base_data: bool = flag(False, "take the data from --base and --config")
    split: str | None = flag(None, "validation (default), train or test")

    def load(self, run: RunArguments) -> LoadedRun:
        """The run's transformer; `--config` changes its config as well, if not for data only."""
        return run.load(run.base if self.ignore_base_data else [*run.base, *self.config])

    def section(self, run: Run, arguments: RunArguments) -> DictConfig:
        """The `data` section, see `data_config`."""
        base = [*arguments.base, *self.config]
        return data_config(run, base, arguments.overrides, self.ignore_base_data)

    def open(self, run: Run, arguments: RunArguments) -> SeededDataset:
        """The dataset, see `open_dataset`; what is damaged in it shows when it is read."""
        section = self.section(run, arguments)
        with damage_found_later():
            return open_dataset(section, self.split)


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """How to sample, for scripts without a `SamplingPlan`."""

    settings: SampleSettings
    seed: int = flag(0, "decides each sample, together with its number")
    batch_size: int = flag(4, "sampled at once")

    def __post_init__(self) -> None:
        require_positive(batch_size=self.batch_size)


def require_positive(**counts: int | None) -> None:
    """Refuse (`UserError`) flags, by name, whose numbers are below 1, or larger than any memory;
    None is a flag left out."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"--{name} must be at least 1, not {count}")
        if count is not None and count > MOST_SAMPLES:
            raise UserError(f"--{name} must be at most {MOST_SAMPLES:,}, not {count}")


def make_parser(
    description: str, *settings: type, run: type = RunArguments, **defaults: Any
) -> Parser:
    """A parser of `RunArguments`, or another class `run`, and of further dataclasses `settings`,
    with other `defaults`."""
    parser = Parser(description=description, epilog="key.path=value overrides the run's config")
    add_trust_flag(parser)
    add_weight_flags(parser)
    for each in (run, *settings):
        add_flags(parser, each, **defaults)
    return parser


def read_arguments(
    parser: Parser, settings: type[T], argv: Sequence[str] | None
) -> tuple[RunArguments, T]:
    """What the flags of a `make_parser` say: of the run, and of one of its dataclasses."""
    args, overrides = parse(parser, argv)
    return from_flags(RunArguments, args, overrides=tuple(overrides)), from_flags(settings, args)

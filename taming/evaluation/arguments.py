"""Flags that the evaluation scripts share, as dataclasses, and what they name."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from taming.checkpoint import Run, Weights, find_run, is_model_name, weights_at
from taming.command_line import (
    Parser,
    add_flags,
    add_trust_flag,
    add_weight_flags,
    flag,
    from_flags,
    is_override,
    take_overrides,
)
from taming.devices import choose_dtype
from taming.errors import UserError
from taming.evaluation.cache import SAVE_EVERY, Cache
from taming.evaluation.metrics.evaluators import TORCH_FIDELITY
from taming.evaluation.metrics.extractor_files import INCEPTION
from taming.evaluation.metrics.features import Extraction, Extractor, make_extractors
from taming.evaluation.metrics.set_metrics import METRICS
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.reference import ROLES, add_size_flags, resize_by_flags
from taming.evaluation.runner import Runner
from taming.evaluation.sources.conditioned_run import ConditionedRunSource, needs_data_conditions
from taming.evaluation.sources.dataset import DatasetSource
from taming.evaluation.sources.folder import FolderSource, image_files
from taming.evaluation.sources.npz_images import NpzImages, holds_images
from taming.evaluation.sources.run import RunSource
from taming.evaluation.tasks.fidelity import FidelitySettings, ImageSet
from taming.sampling.plan import TOP_K, SamplingPlan
from taming.sampling.sizes import add_side_flags
from taming.shipped import find_config, script
from taming.user_files import YAMLS

EXTRACTOR_HELP = (
    "of torch-fidelity, for all metrics, or your own as module:Class (default: "
    f"{INCEPTION}, and {TORCH_FIDELITY.manifold_extractor} for precision and recall)"
)
LAYER_HELP = "other features than the extractor's own choice, as fid=192 (may be repeated)"


@dataclass(frozen=True, kw_only=True)
class CacheArguments:
    """How sets of images are gone through."""

    workers: int | None = flag(None, "processes that load images (default: up to 8)")
    no_cache: bool = flag(False, "use and keep nothing of earlier and interrupted evaluations")
    save_every: float = flag(
        SAVE_EVERY, "seconds between saves, so that an interrupted evaluation can go on"
    )

    def runner(self, batch_size: int) -> Runner:
        """Raises UserError for a batch size below 1."""
        return Runner(batch_size, Cache(enabled=not self.no_cache), self.save_every)


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments:
    """What evaluations of images take: output, device, precision, workers, cache."""

    cache: CacheArguments
    outdir: Path | None = flag(None, "where results go", "-o")
    device: str = flag("auto", "auto, cuda, cuda:1, mps or cpu")
    precision: str = flag("fp32", "of the networks: fp32, bf16 or auto")
    compile: bool = flag(False, "torch.compile; for many images")

    def folder_for(self, samples: ImageSet) -> Path:
        """--outdir; by default `evaluation` in the samples' run, or here."""
        run = samples.run.folder if isinstance(samples, RunSource) else Path()
        return self.outdir or run / "evaluation"


def _metric_and_layer(text: str) -> tuple[str, str]:
    metric, equals, layer = text.partition("=")
    if not equals or not layer:
        raise UserError(f"give METRIC=LAYER such as fid=192, not '{text}'")
    return metric, layer


@dataclass(frozen=True, kw_only=True)
class ExtractorArguments:
    """Which network turns images into features."""

    extractor: str | None = flag(None, EXTRACTOR_HELP)
    extractor_weights: Path | None = flag(None, "its weights file (also: --weights FILE)")
    layer: tuple[tuple[str, str], ...] = flag(
        (), LAYER_HELP, metavar="METRIC=LAYER", parse=_metric_and_layer, repeated=True
    )

    def build(
        self, settings: FidelitySettings, device: torch.device, precision: str, compiled: bool
    ) -> Extractor:
        """The extractor of all metrics of `settings`; by default, that of their evaluator.

        Raises UserError for unknown names and layers, or weights that are not there.
        """
        name = extractor_name(self.extractor or settings.evaluator.extractor)
        layers, weights = settings.layers_of(settings.metrics, name), self.extractor_weights
        wanted = Extraction(name, layers, weights, settings.evaluator.resize)
        dtype = extractor_dtype(precision, device)
        (made,) = make_extractors([wanted], device=device, dtype=dtype, compiled=compiled)
        return made


def add_metric_flags(parser: argparse.ArgumentParser) -> None:
    """`--metrics`, and the settings of all metrics: torch-fidelity's by default."""
    add_flags(parser, FidelitySettings)
    for metric in METRICS.values():
        add_flags(parser.add_argument_group(f"{metric.title} ({metric.name})"), metric.settings)


def fidelity_settings(
    args: argparse.Namespace, layers: Mapping[str, str], keep_features: bool = False, **chosen: Any
) -> FidelitySettings:
    """What the flags of `add_metric_flags` say; `chosen` are fields that they do not decide.

    Raises UserError for an unknown metric or a number out of range.
    """
    of_metrics = {name: from_flags(metric.settings, args) for name, metric in METRICS.items()}
    rest = {"layers": layers, "keep_features": keep_features, "of_metrics": of_metrics}
    rest |= {"evaluator": TORCH_FIDELITY} | chosen
    return from_flags(FidelitySettings, args, **rest)


def extractor_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What an extractor computes in if `--precision` says `precision`.

    For bf16 that is float16 on a GPU, which is as fast there and rounds 8 times as finely, and
    float32 on a CPU, which is as fast as float16 there.

    Raises UserError for an unknown precision.
    """
    exact = choose_dtype(precision, device) == torch.float32 or device.type == "cpu"
    return torch.float32 if exact else torch.float16


@dataclass(frozen=True, kw_only=True)
class SetArguments:
    """Which images of a folder or of a dataset's config."""

    deep: bool = flag(False, "look into folders below as well")
    split: str = flag("validation", "train, validation or test")
    samples_split: str | None = flag(None, "of SAMPLES, if it is another one")
    image_key: str = flag("image", "the items' entry")

    def open(
        self,
        text: str,
        make_plan: Callable[[], SamplingPlan] = SamplingPlan,
        overrides: Sequence[str] = (),
        workers: int | None = None,
        runs: Sequence[Run] = (),
    ) -> ImageSet:
        """The set of images that `text` names: a folder of images, a run's folder or checkpoint
        (its samples, by the plan that is made), a config's dataset, images in an `.npz`, or
        statistics (`.npz`) of images that need not be here. What a config leaves open is taken from
        `runs`.

        Raises UserError if it is none of these.
        """
        path = _place_of(text)
        if not (path.exists() or is_model_name(text)):
            raise UserError(
                f"there is no {text}; give a folder of images, a run, a dataset's YAML, or an .npz "
                f"of images or of {script('compute_statistics')}"
            )
        if path.suffix == ".npz" and holds_images(path):
            return NpzImages(path, workers)
        if path.suffix == ".npz":
            statistics = Statistics.load(path)
            return replace(statistics, protocol=statistics.protocol | {"file": text})
        if path.suffix in YAMLS:
            return DatasetSource(path, self.split, self.image_key, overrides, workers, runs=runs)
        if _is_run(text):
            plan = make_plan()
            if needs_data_conditions(text, plan):
                return ConditionedRunSource(text, plan, self.split, workers)
            return RunSource(text, plan)
        return FolderSource(path, self.deep or None, workers)


def _place_of(text: str) -> Path:
    """A path; of a config that is not there, but one of the shipped ones, that one's."""
    path = Path(text)
    if path.suffix in YAMLS and not path.exists():
        with suppress(UserError):
            return find_config(path)
    return path


def _is_run(text: str) -> bool:
    """Beside images, at any depth, weights of any names belong to these: of a classifier, say."""
    path = Path(text)
    if path.suffix in (*YAMLS, ".npz") and not is_model_name(text):
        return False
    found = weights_at(text)
    return found is Weights.RUN or (found is Weights.LOOSE and not image_files(path, deep=True))


@dataclass(frozen=True, kw_only=True)
class RunSetArguments:
    """How the samples of a run are made, beside `SamplingPlan`."""

    batch_size: int = flag(50, "images at once")
    sampler_precision: str | None = flag(
        None, "of the transformer, if it is not that of --precision"
    )
    base: tuple[str, ...] = flag(
        (), "merged over the run's configs", "-b", metavar="YAML", nargs="*"
    )


def make_parser(description: str, *settings: type, **defaults: Any) -> Parser:
    """A parser of the dataclasses `settings`; `defaults` are other values than their own."""
    parser = Parser(description=description, epilog="key.path=value overrides a config")
    add_trust_flag(parser)
    add_weight_flags(parser)
    for each in settings:
        add_flags(parser, each, **defaults)
    return parser


def add_set_flags(parser: argparse.ArgumentParser, roles: Sequence[str] = ROLES) -> None:
    """What folders, configs and runs need that are given as sets of images, in these roles."""
    add_flags(parser.add_argument_group("images of a folder or a dataset's config"), SetArguments)
    add_size_flags(parser, roles)
    group = parser.add_argument_group("images of a run")
    add_flags(group, SamplingPlan, top_k=TOP_K)
    add_side_flags(group)
    add_flags(group, RunSetArguments)


def open_sets(
    names: Sequence[str],
    args: argparse.Namespace,
    overrides: Sequence[str],
    device: torch.device,
    runs: Sequence[Run] = (),
) -> list[ImageSet]:
    """The sets of images that the positional arguments name, by the flags of `add_set_flags`.

    A config beside a run need not say what the run knows, such as its lists of images; `runs` are
    those that give no set themselves.

    Raises UserError for names of no set, flags out of range, and statistics of images that were
    resized otherwise than the flags say.
    """
    own, workers = from_flags(SetArguments, args), from_flags(CacheArguments, args).workers
    make_plan = partial(sampling_plan, args, overrides, device)
    runs = [*runs, *(find_run(name) for name in names if _is_run(name))]
    if not runs and (base := from_flags(RunSetArguments, args).base):
        raise UserError(f"--base {base[0]} is merged over a run's configs, and none is given")
    if overrides and not runs and not any(Path(name).suffix in YAMLS for name in names):
        raise UserError(f"{overrides[0]} overrides a config, and none is given; leave it out")
    of_samples = replace(own, split=own.samples_split or own.split)
    sets = [
        (own if place else of_samples).open(name, make_plan, overrides, workers, runs=runs)
        for place, name in enumerate(names)
    ]
    resize_by_flags(sets, args)
    return sets


def sampling_plan(
    args: argparse.Namespace, overrides: Sequence[str], device: torch.device
) -> SamplingPlan:
    """How the flags of `add_set_flags` want a run's images; UserError for values out of range."""
    own, common = from_flags(RunSetArguments, args), from_flags(EvaluationArguments, args)
    dtype = choose_dtype(own.sampler_precision or common.precision, device)
    rest: dict[str, Any] = {"base": own.base, "overrides": tuple(overrides)}
    rest |= {"compiled": common.compile, "batch_size": own.batch_size}
    return from_flags(SamplingPlan, args, device=device, dtype=dtype, **rest)


def parse_sets(
    parser: Parser, argv: Sequence[str] | None, most: int
) -> tuple[argparse.Namespace, list[str], list[str]]:
    """The flags, the positional arguments, of which there are up to `most`, and the overrides.

    What has a "=" in it and is no path is an override, also after the files of --base.

    Raises UserError for an unknown flag or too many positional arguments.
    """
    parser.add_argument("sets", nargs="*", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_intermixed_args(argv)
    words = [*args.sets, *take_overrides(args), *rest]
    overrides = [word for word in words if is_override(word)]
    sets = [word for word in words if word not in overrides]
    if unknown := [word for word in words if word.startswith("-")] or sets[most:]:
        parser.refuse(unknown[0])
    return args, sets, overrides


def extractor_name(text: str) -> str:
    """The registered name of `--extractor`; `module:Class` is imported and registered.

    Raises UserError if there is no such class, or it is no extractor.
    """
    module_name, colon, name = text.partition(":")
    if not colon:
        return text
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    try:
        extractor = vars(importlib.import_module(module_name))[name]
    except (ImportError, KeyError) as error:
        reason = error if isinstance(error, ImportError) else f"{module_name} has no '{name}'"
        raise UserError(f"--extractor {text}: {reason}") from None
    if not (isinstance(extractor, type) and issubclass(extractor, FeatureExtractorBase)):
        raise UserError(f"{text} is no subclass of torch_fidelity's FeatureExtractorBase")
    if FEATURE_EXTRACTORS_REGISTRY.get(text) is not extractor:
        FEATURE_EXTRACTORS_REGISTRY.pop(text, None)
        register_feature_extractor(text, extractor)
    return text

"""Flags that the evaluation scripts share."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from taming.command_line import Parser, from_flags
from taming.devices import choose_dtype
from taming.errors import UserError
from taming.evaluation.cache import SAVE_EVERY, Cache
from taming.evaluation.metrics.features import INCEPTION, Extractor
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.runner import Reading
from taming.evaluation.sources.conditioned_run import ConditionedRunSource, draws_for_data
from taming.evaluation.sources.folder import DatasetSource, FolderSource
from taming.evaluation.sources.run import Drawing, RunSource
from taming.evaluation.tasks.fidelity import ImageSet, needed_layers
from taming.evaluation.tasks.protocol import Protocol
from taming.sampling.arguments import require_positive
from taming.sampling.plan import add_plan_flags
from taming.sampling.settings import SampleSettings

CONFIGS = (".yaml", ".yml")
NUM_SAMPLES = 50_000
PRC_EXTRACTOR = "vgg16"  # torch-fidelity's own choice for precision and recall


def make_parser(description: str) -> Parser:
    """A parser with what every evaluation takes: output, device, precision, workers, cache."""
    parser = Parser(description=description, epilog="key.path=value overrides a config")
    parser.add_argument("-o", "--outdir", type=Path, help="where results go")
    parser.add_argument("--device", default="auto", help="auto (default), cuda, cuda:1, mps, cpu")
    parser.add_argument(
        "--precision", default="fp32", help="of the networks: fp32 (default), bf16, auto"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile; for many images")
    parser.add_argument("--workers", type=int, help="processes that decode (default: up to 8)")
    parser.add_argument(
        "--no_cache", action="store_true", help="use and keep no features of earlier evaluations"
    )
    parser.add_argument(
        "--save_every",
        type=float,
        default=SAVE_EVERY,
        help=f"seconds, so that an interrupted evaluation can go on (default {SAVE_EVERY:.0f})",
    )
    return parser


def add_extractor(parser: argparse.ArgumentParser) -> None:
    """Which network turns images into features."""
    parser.add_argument(
        "--extractor",
        help="of torch-fidelity, for all metrics, or your own as module:Class (default: "
        "inception-v3-compat, and vgg16 for precision and recall)",
    )
    parser.add_argument("--weights", type=Path, help="the extractor's weights file")
    parser.add_argument("--prc_extractor", help="another one for precision and recall")
    parser.add_argument("--prc_weights", type=Path, help="its weights file")
    parser.add_argument(
        "--layer",
        action="append",
        default=[],
        metavar="METRIC=LAYER",
        help="other features than the extractor's own choice, as fid=192 (may be repeated)",
    )


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Which numbers, and their settings: torch-fidelity's by default."""
    parser.add_argument(
        "--metrics", default="fid", help="comma list of fid (default), isc, kid, prc"
    )
    parser.add_argument("--isc_splits", type=int, default=10, help="default 10")
    parser.add_argument("--kid_subsets", type=int, default=100, help="default 100")
    parser.add_argument("--kid_subset_size", type=int, default=1000, help="default 1000")
    parser.add_argument("--prc_neighbours", type=int, default=3, help="default 3")
    parser.add_argument(
        "--per_class", action="store_true", help="FID of every class, as a table and a plot"
    )


def protocol_from(args: argparse.Namespace, banks: bool = False) -> Protocol:
    """What the flags of `add_metrics` and `add_extractor` ask for."""
    return Protocol(
        tuple(dict.fromkeys(name.strip() for name in args.metrics.split(",") if name.strip())),
        layers_from(args),
        args.isc_splits,
        args.kid_subsets,
        args.kid_subset_size,
        args.prc_neighbours,
        args.per_class,
        banks,
    )


def layers_from(args: argparse.Namespace) -> dict[str, str]:
    """The layers that `--layer` chooses, by metric.

    Raises:
        UserError: where it says no such thing.
    """
    return dict(_layer(text) for text in args.layer)


def _layer(text: str) -> tuple[str, str]:
    metric, equals, layer = text.partition("=")
    if not equals or not layer:
        raise UserError(f"--layer takes METRIC=LAYER such as fid=192, not '{text}'")
    return metric, layer


def extractors_from(
    args: argparse.Namespace, protocol: Protocol, device: torch.device
) -> tuple[Extractor, Extractor]:
    """The extractor, and the one for precision and recall (often the same).

    Raises:
        UserError: for unknown names and layers, or weights that are not there.
    """
    own = [metric for metric in protocol.metrics if metric != "prc"]
    own += ["fid"] if protocol.per_class or protocol.banks else []
    name = extractor_name(args.extractor or INCEPTION)
    prc_name = extractor_name(args.prc_extractor or args.extractor or PRC_EXTRACTOR)
    shared = name == prc_name and args.prc_weights in (None, args.weights)
    dtype = extractor_dtype(args.precision, device)

    def build(name: str, metrics: list[str], weights: Path | None) -> Extractor:
        layers = needed_layers(name, metrics, protocol.layers)
        return Extractor(name, layers, weights, device, dtype, args.compile)

    if shared or "prc" not in protocol.metrics or not own:
        only_prc = not own and not shared
        metrics = ["prc"] if only_prc else list(dict.fromkeys([*own, *protocol.metrics]))
        weights = args.prc_weights if only_prc else args.weights
        one = build(prc_name if only_prc else name, metrics, weights)
        return one, one
    return build(name, own, args.weights), build(prc_name, ["prc"], args.prc_weights)


def extractor_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What an extractor computes in where `--precision` says `precision`.

    For bf16 that is float16 on a GPU, which is as fast there and rounds 8 times as finely, and
    float32 on a CPU, which is as fast as float16 there.

    Raises:
        UserError: for an unknown precision.
    """
    exact = choose_dtype(precision, device) == torch.float32 or device.type == "cpu"
    return torch.float32 if exact else torch.float16


def reading_from(args: argparse.Namespace) -> Reading:
    """Batch size and cache as the flags want them."""
    return Reading(args.batch_size, Cache(enabled=not args.no_cache), args.save_every)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """What folders, configs and runs need, where they are given as sets of images."""
    data = parser.add_argument_group("images of a folder or a dataset's config")
    data.add_argument(
        "--deep", action="store_true", default=None, help="look into folders below as well"
    )
    data.add_argument("--split", default="validation", help="train, validation (default) or test")
    data.add_argument("--image_key", default="image", help="the items' entry (default image)")
    drawn = parser.add_argument_group("images of a run")
    add_plan_flags(drawn)
    drawn.add_argument("--batch_size", type=int, default=50, help="at once (default 50)")
    drawn.add_argument(
        "--sampler_precision", help="of the transformer, where it is not that of --precision"
    )
    drawn.add_argument(
        "-b", "--base", nargs="*", default=[], metavar="YAML", help="merged over the run's configs"
    )


def parse_sets(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, most: int
) -> tuple[argparse.Namespace, list[str], list[str]]:
    """The flags, the positional arguments, of which there are up to `most`, and the overrides.

    What has a "=" in it and is no path is an override.

    Raises:
        UserError: for an unknown flag or too many positional arguments.
    """
    parser.add_argument("sets", nargs="*", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_intermixed_args(argv)
    words = [*args.sets, *rest]
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    sets = [word for word in words if word not in overrides]
    if unknown := [word for word in words if word.startswith("-")] or sets[most:]:
        parser.error(f"unknown argument {unknown[0]}")
    return args, sets, overrides


def drawing_from(
    args: argparse.Namespace, overrides: Sequence[str], device: torch.device
) -> Drawing:
    """How the flags of `add_sources` want a run's images.

    Raises:
        UserError: for values out of range.
    """
    require_positive(batch_size=args.batch_size)
    height, width = args.size or (None, None)
    return Drawing(
        args.num_samples,
        from_flags(SampleSettings, args),
        args.seed,
        args.classes,
        height,
        width,
        args.reject_ratio,
        args.classifier,
        tuple(args.base),
        tuple(overrides),
        device,
        choose_dtype(args.sampler_precision or args.precision, device),
        args.compile,
    )


def source_for(
    text: str,
    drawing: Drawing | None = None,
    split: str = "validation",
    image_key: str = "image",
    deep: bool | None = None,
    workers: int | None = None,
) -> ImageSet:
    """The set of images that `text` names: a folder of images, a run's folder or checkpoint (its
    samples), a config's dataset, or statistics (`.npz`) of images that need not be here.

    Raises:
        UserError: where it is none of these.
    """
    path = Path(text)
    if not path.exists():
        raise UserError(
            f"there is no {text}; give a folder of images, a run, a dataset's YAML, or an .npz "
            "of scripts/compute_statistics.py"
        )
    if path.suffix == ".npz":
        found = Statistics.load(path)
        return replace(found, protocol=found.protocol | {"file": text})
    if path.suffix in CONFIGS:
        overrides = drawing.overrides if drawing else ()
        return DatasetSource(path, split, image_key, overrides, workers)
    if path.is_file() or _is_run(path):
        if draws_for_data(path, drawing):
            return ConditionedRunSource(path, drawing, split, workers)
        return RunSource(path, drawing)
    return FolderSource(path, deep, workers)


def _is_run(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir() or any(folder.glob("*.ckpt"))


def extractor_name(text: str) -> str:
    """The registered name of `--extractor`; `module:Class` is imported and registered.

    Raises:
        UserError: where there is no such class, or it is no extractor.
    """
    module_name, colon, name = text.partition(":")
    if not colon:
        return text
    found = _imported(module_name, name)
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    if not (isinstance(found, type) and issubclass(found, FeatureExtractorBase)):
        raise UserError(f"{text} is no subclass of torch_fidelity's FeatureExtractorBase")
    if FEATURE_EXTRACTORS_REGISTRY.get(text) is not found:
        FEATURE_EXTRACTORS_REGISTRY.pop(text, None)
        register_feature_extractor(text, found)
    return text


def _imported(module_name: str, name: str) -> Any:
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"--extractor {module_name}:{name}: {error}") from None
    if not hasattr(module, name):
        raise UserError(f"--extractor {module_name}:{name}: {module_name} has no '{name}'")
    return getattr(module, name)

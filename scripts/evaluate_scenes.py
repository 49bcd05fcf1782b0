"""FID, SceneFID and Inception Score of scenes that a run draws for the layouts of its data.

    python scripts/evaluate_scenes.py -r logs/<run> --samples_per_layout 5

The images go from the model into the metrics, without files in between; they are those of
scripts/make_scene_samples.py with the same flags. They are compared with the images that the
layouts were taken of, as a whole and object by object (SceneFID: crops by the boxes, 224 x 224).
JSON and Markdown go to `<run>/evaluation/`. An interrupted evaluation goes on when the same command
is given again; `torchrun --nproc_per_node 4 scripts/evaluate_scenes.py ...` shares the work.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taming.checkpoint import run_config
from taming.command_line import add_flags, from_flags, parse, parse_size
from taming.config import plain, without_checkpoint_paths
from taming.devices import choose_device, choose_dtype
from taming.downloads import file_hash
from taming.errors import UserError, command
from taming.evaluation.arguments import (
    add_extractor,
    extractors_from,
    layers_from,
    make_parser,
    reading_from,
)
from taming.evaluation.results import command_line, make_result, markdown_table, write_result
from taming.evaluation.sources.scenes import DrawnScenes, Layouts
from taming.evaluation.tasks.fidelity import Protocol
from taming.evaluation.tasks.scenes import SceneEvaluation, evaluate_scenes
from taming.sampling.arguments import SampleArguments
from taming.sampling.load import data_config, load_transformer, open_dataset
from taming.sampling.sizes import tokens_for

SCRIPT = "scripts/evaluate_scenes.py"


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = make_parser("Evaluate scenes that a run draws.")
    parser.add_argument("-r", "--resume", required=True, help="the run: its folder or checkpoint")
    parser.add_argument(
        "-b", "--base", nargs="*", default=[], metavar="YAML", help="merged over the run's configs"
    )
    parser.add_argument("--data", metavar="YAML", help="with a data section (default: the run's)")
    parser.add_argument("--split", help="validation (default), train or test")
    parser.add_argument("-R", "--resolution", default="256,256", help="height,width in pixels")
    parser.add_argument(
        "-C", "--conditional", default="objects_bbox", help="or objects_center_points"
    )
    parser.add_argument("-n", "--num_layouts", type=int, help="of the data (default: all)")
    parser.add_argument(
        "-N", "--samples_per_layout", type=int, default=5, help="of each layout (default 5)"
    )
    parser.add_argument("--isc_splits", type=int, default=10, help="default 10")
    parser.add_argument(
        "--min_object_side",
        type=float,
        default=1.0,
        help="pixels that an object has at least, either way, to count for SceneFID (default 1)",
    )
    parser.add_argument(
        "--sampler_precision", help="of the transformer, where it is not that of --precision"
    )
    add_flags(parser, SampleArguments, top_k=100, batch_size=20)
    add_extractor(parser)
    args, overrides = parse(parser, argv)
    for name in ("num_layouts", "samples_per_layout", "isc_splits"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    if not args.min_object_side > 0:
        raise UserError(f"--min_object_side must be above 0, not {args.min_object_side}")
    return args, overrides


def drawn_scenes(args: Namespace, overrides: Sequence[str], device: Any) -> tuple[DrawnScenes, Any]:
    """What is to be drawn, and the run."""
    settings, size = from_flags(SampleArguments, args).settings, parse_size(args.resolution)
    dtype = choose_dtype(args.sampler_precision or args.precision, device)
    model, run, step = load_transformer(args.resume, args.base, device, overrides, dtype)
    base = [args.data] if args.data else args.base
    seeded = open_dataset(data_config(run, base, overrides, bool(args.data)), args.split)
    layouts = Layouts(seeded, args.num_layouts, args.conditional)
    config = without_checkpoint_paths(run_config(run, args.base, overrides).model)
    identity = {
        "path": str(args.resume),
        "checkpoint": run.checkpoint.name,
        "checkpoint_hash": file_hash(run.checkpoint),
        "global_step": step,
        "model": plain(config),
    }
    shape = tokens_for(model, size)
    samples = DrawnScenes(
        layouts,
        model,
        identity,
        args.samples_per_layout,
        settings,
        args.seed,
        shape,
        dtype,
        args.compile,
    )
    return samples, run


def print_metrics(found: SceneEvaluation) -> None:
    metrics, sets = found.metrics, found.sets
    for name, title in (("fid", "FID"), ("scene_fid", "SceneFID")):
        spread = metrics["one_per_layout"][name]
        text = f"{title} {metrics[name]:.4g}"
        print(f"{text} (one image per layout: {spread['mean']:.4g} +- {spread['std']:.2g})")
    print(f"Inception Score {metrics['isc']['mean']:.4g} +- {metrics['isc']['std']:.2g}")
    samples, reference = sets["samples"], sets["reference"]
    print(
        f"of {samples['images']} images with {samples['objects']} objects, against "
        f"{reference['images']} with {reference['objects']}"
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    args, overrides = read_arguments(argv)
    device = choose_device(args.device)
    layers = layers_from(args)
    protocol = Protocol(("fid", "isc"), layers, args.isc_splits)
    extractor, _ = extractors_from(args, protocol, device)
    samples, run = drawn_scenes(args, overrides, device)
    reading = reading_from(args)
    found = evaluate_scenes(
        samples, extractor, reading, layers, args.isc_splits, args.min_object_side
    )
    reading.finish()
    if found is None:
        return
    seconds, line = time.monotonic() - start, command_line(argv, SCRIPT)
    result = make_result(found.metrics, found.protocol, found.sets, seconds, device, line)
    result["by_sample"] = found.rows
    outdir = Path(args.outdir or run.folder / "evaluation")
    path = write_result(result, outdir / "scenes.json", [markdown_table(found.rows)])
    print_metrics(found)
    print(f"{path.name} and {path.with_suffix('.md').name} are in {path.parent}")


if __name__ == "__main__":
    main()

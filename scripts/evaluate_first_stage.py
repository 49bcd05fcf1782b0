"""Compare first stages on the same images: reconstructions, rFID and the use of their codes.

    python scripts/evaluate_first_stage.py -r logs/<run> [-r logs/<run> ...]

Of a transformer's run its first stage is taken; DALL-E's dVAE is one of them. The images are the
first run's validation data, or those of --images or --data. A table, a JSON file that says how the
numbers were made, a picture of the same images through each first stage, and the codes' histograms
go to `<first run>/evaluation/`. An interrupted evaluation goes on when the same command is given
again; `torchrun --nproc_per_node 4 scripts/evaluate_first_stage.py ...` shares the work.
"""

from __future__ import annotations

import logging
import math
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from taming.command_line import parse
from taming.devices import choose_device, choose_dtype
from taming.distributed import own_share
from taming.errors import UserError, command
from taming.evaluation.arguments import (
    add_extractor,
    extractor_dtype,
    extractor_name,
    layers_from,
    make_parser,
    reading_from,
)
from taming.evaluation.cache import key_of
from taming.evaluation.metrics.features import INCEPTION, Extractor, weights_file
from taming.evaluation.metrics.lpips import Networks, load_networks
from taming.evaluation.metrics.reconstruction import NETWORKS, SIMILARITIES
from taming.evaluation.results import command_line, make_result, markdown_table, write_result
from taming.evaluation.sources.folder import DatasetSource, FolderSource, LoadedSource
from taming.evaluation.sources.prepared import LabelSource, Prepared
from taming.evaluation.tasks.fidelity import needed_layers
from taming.evaluation.tasks.first_stage import FirstStageEvaluator, StageResult
from taming.evaluation.tasks.first_stage_comparison import (
    comparison_picture,
    file_name,
    reasons,
    table_rows,
    write_codes,
    write_pairs,
)
from taming.evaluation.tasks.loaded_first_stages import Stage, load_stages

SCRIPT = "scripts/evaluate_first_stage.py"

log = logging.getLogger(__name__)


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = make_parser("Compare first stages on the same images.")
    parser.add_argument(
        "-r",
        "--resume",
        action="append",
        required=True,
        metavar="RUN",
        help="a run's folder or checkpoint (may be repeated)",
    )
    parser.add_argument(
        "-b", "--base", nargs="*", default=[], metavar="YAML", help="merged over the runs' configs"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="at once (default 16)")
    data = parser.add_argument_group("images (default: the first run's validation data)")
    data.add_argument("--images", type=Path, metavar="FOLDER", help="of images")
    data.add_argument("--deep", action="store_true", default=None, help="and of folders below it")
    data.add_argument("--data", type=Path, metavar="YAML", help="with a data section")
    data.add_argument("--split", default="validation", help="train, validation (default) or test")
    data.add_argument("--image_key", help="the items' entry (default: the first stage's own)")
    data.add_argument(
        "--size", type=int, help="resize and crop to a square of so many pixels (default: as is)"
    )
    data.add_argument("-n", "--num_images", type=int, help="the first n images (default: all)")
    parser.add_argument("--rows", type=int, default=8, help="images in the picture (default 8)")
    add_extractor(parser)
    for net, name in (("vgg", "VGG16"), ("alex", "AlexNet")):
        parser.add_argument(
            f"--{net}_path", type=Path, metavar="FILE", help=f"torchvision's {name}, for LPIPS"
        )
    return parse(parser, argv)


def check(args: Namespace) -> None:
    if args.images and args.data:
        raise UserError("--images and --data both name the images; give one of them")
    for flag in ("rows", "batch_size"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} must be at least 1, not {getattr(args, flag)}")


def find_images(args: Namespace, stages: Sequence[Stage], overrides: Sequence[str]) -> Prepared:
    """The same images for all first stages, in whole codes of each of them."""
    multiple = math.lcm(*(stage.model.downsampling_factor for stage in stages))
    return Prepared(_source(args, stages, overrides), args.size, multiple, args.num_images)


def _source(args: Namespace, stages: Sequence[Stage], overrides: Sequence[str]) -> LoadedSource:
    pictorial = stages[0].pictorial
    if args.images and not pictorial:
        raise UserError("--images holds pictures, and the first stage takes segmentations")
    if args.size and not pictorial:
        raise UserError("--size resizes pictures, and the first stage takes segmentations")
    if args.images:
        return FolderSource(args.images, args.deep, args.workers)
    config = [args.data] if args.data else _own_data(args, stages)
    key = args.image_key or stages[0].image_key
    if pictorial:
        return DatasetSource(config, args.split, key, overrides, args.workers)
    labels = stages[0].model.channels
    return LabelSource(labels, config, args.split, key, overrides, args.workers)


def _own_data(args: Namespace, stages: Sequence[Stage]) -> list[Any]:
    """The configs of the first run that has data of the split."""
    for stage in stages:
        if stage.config.get("data", {}).get("params", {}).get(args.split):
            return [*stage.run.configs, *args.base]
    raise UserError(
        f"none of the runs has {args.split} data of its own; give --images FOLDER or --data YAML"
    )


def find_extractor(args: Namespace, device: torch.device) -> tuple[Extractor | None, str | None]:
    """The extractor of the rFID, or why there is none.

    Raises:
        UserError: for a wrong --extractor, --layer or --weights.
    """
    name = extractor_name(args.extractor or INCEPTION)
    layers = needed_layers(name, ["fid"], layers_from(args))
    try:
        weights_file(name, args.weights)
    except UserError as error:
        if args.weights:
            raise
        log.warning("rFID is left out, everything else is computed: %s", error)
        return None, str(error)
    dtype = extractor_dtype(args.precision, device)
    return Extractor(name, layers, args.weights, device, dtype, args.compile), None


def make_evaluator(args: Namespace, pictorial: bool) -> FirstStageEvaluator:
    """With the networks whose files are there."""
    device = choose_device(args.device)
    networks, extractor, reason = Networks(), None, None
    if pictorial:
        files = {"vgg": args.vgg_path, "alex": args.alex_path}
        networks = load_networks(NETWORKS, device, files)
        extractor, reason = find_extractor(args, device)
    return FirstStageEvaluator(
        networks,
        extractor,
        (*SIMILARITIES, *NETWORKS),
        device,
        choose_dtype(args.precision, device),
        reading_from(args),
        {} if reason is None else {"rfid": reason},
    )


def write(
    outdir: Path, evaluator: FirstStageEvaluator, results: Sequence[StageResult], made: Any
) -> Path:
    """The numbers: all of them in JSON, tables in Markdown, a CSV of the images per first stage."""
    sets = {"images": results[0].images, **{r.name: r.reconstructions for r in results}}
    seconds, line = made
    protocol = evaluator.describe()
    metrics = {r.name: r.metrics for r in results}
    result = make_result(metrics, protocol, sets, seconds, evaluator.device, line)
    result["left_out"] = {r.name: r.left_out for r in results}
    result["classes"] = {r.name: r.classes for r in results}
    key = key_of(protocol=protocol, sets=sets)
    path = outdir / f"first_stages-{key[:8]}" / "first_stages.json"
    tables = [markdown_table(table_rows(results)), *reasons(results), *class_tables(results)]
    write_result(result, path, tables)
    for r in results:
        if r.values:
            write_pairs(r.values, path.parent / f"images-{file_name(r.name)}.csv")
    write_codes(results, path.parent)
    return path


def class_tables(results: Sequence[StageResult]) -> list[str]:
    """A table per first stage with a row per class, where there are classes."""
    return [
        f"{result.name}:\n\n"
        + markdown_table([{"class": label, **means} for label, means in result.classes.items()])
        for result in results
        if result.classes
    ]


@command
def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = read_arguments(argv)
    check(args)
    start = time.monotonic()
    stages = load_stages(args.resume, args.base, overrides)
    images = find_images(args, stages, overrides)
    evaluator = make_evaluator(args, stages[0].pictorial)
    found = [evaluator(stage, images) for stage in stages]
    evaluator.reading.finish()
    results = [result for result in found if result is not None]
    if own_share()[0] > 0:
        return
    outdir = args.outdir or stages[0].run.folder / "evaluation"
    made = (time.monotonic() - start, command_line(argv, SCRIPT))
    path = write(outdir, evaluator, results, made)
    comparison_picture(evaluator, stages, images, args.rows).save(path.with_suffix(".png"))
    print(markdown_table(table_rows(results)))
    print(f"{path.name}, its .md and .png, and what is behind them are in {path.parent}")


if __name__ == "__main__":
    main()

"""How well a transformer predicts the codes of a data set: likelihood, by class and by position.

    python scripts/evaluate_transformer.py -r logs/<run>

Bits and nats per token and per value of the image, the share of tokens that were found likeliest,
a table of the classes, and maps of where in the image codes are hard to predict. The data are the
run's validation data, or those of --split, --data and of `key.path=value` overrides. JSON, Markdown
and plots go to `<run>/evaluation/`. An interrupted evaluation goes on when the same command is
given again; `torchrun --nproc_per_node 4 scripts/evaluate_transformer.py ...` shares the work.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from taming.checkpoint import run_config
from taming.command_line import parse
from taming.config import plain, without_checkpoint_paths
from taming.devices import choose_device, choose_dtype
from taming.distributed import own_share
from taming.downloads import file_hash
from taming.errors import UserError, command
from taming.evaluation.cache import SAVE_EVERY, Cache, key_of
from taming.evaluation.plots import plot_bars, plot_map, plotted
from taming.evaluation.results import command_line, make_result, markdown_table, write_result
from taming.evaluation.runner import Reading
from taming.evaluation.tasks.transformer import (
    TransformerData,
    TransformerTally,
    evaluate_transformer,
)
from taming.sampling.arguments import make_parser
from taming.sampling.load import data_config, load_transformer, open_dataset

SCRIPT = "scripts/evaluate_transformer.py"


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = make_parser("Evaluate a transformer's likelihood.")
    parser.add_argument("--seed", type=int, default=0, help="decides each item (default 0)")
    parser.add_argument("--data", metavar="YAML", help="with a data section (default: the run's)")
    parser.add_argument("--split", help="validation (default), train or test")
    parser.add_argument("-n", "--num_images", type=int, help="the first of the data (default: all)")
    parser.add_argument("--batch_size", type=int, default=16, help="default 16")
    parser.add_argument("--workers", type=int, help="processes that load (default: up to 8)")
    parser.add_argument(
        "--no_cache", action="store_true", help="do not keep what an interrupted evaluation had"
    )
    parser.add_argument(
        "--save_every", type=float, default=SAVE_EVERY, help="seconds between two saves of that"
    )
    args, overrides = parse(parser, argv)
    for name in ("num_images", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    return args, overrides


def open_images(args: Namespace, data: Any) -> Any:
    """The items to evaluate, each decided by its index and --seed alone."""
    dataset = open_dataset(data, args.split)
    dataset.seed = args.seed
    if not hasattr(dataset.dataset, "__len__"):
        raise UserError("the data are a stream without a length, which cannot be evaluated")
    return Subset(dataset, range(min(len(dataset), args.num_images or len(dataset))))


def describe(measured: TransformerTally, args: Namespace, data: Any) -> dict[str, Any]:
    split = args.split or next(s for s in ("validation", "train", "test") if data.params.get(s))
    about = {"kind": "dataset", "split": split, "dataset": plain(data.params[split])}
    return {**about, "seed": args.seed, **measured.content.describe()}


def write(result: dict[str, Any], measured: TransformerTally, outdir: Path) -> Path:
    """All files of a result; returns the JSON's path."""
    path = outdir / "transformer.json"
    likelihood, classes = measured.counted, measured.counted.by_class()
    images = plotted(plot_map, likelihood.map(), outdir / "positions.png", "nats per token")
    tables = []
    if classes:
        tables = [markdown_table([{"class": label} | row for label, row in classes.items()])]
        nats = {label: row["nats_per_token"] for label, row in classes.items()}
        images += plotted(plot_bars, nats, outdir / "classes.png", "nats per token")
    tables += [f"![{image.stem}]({image.name})" for image in images]
    return write_result(result, path, tables)


@command
def main(argv: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    args, overrides = read_arguments(argv)
    device = choose_device(args.device)
    dtype = choose_dtype(args.precision, device)
    model, run, step = load_transformer(args.resume, args.base, device, overrides, dtype)
    base = [args.data] if args.data else args.base
    data = data_config(run, base, overrides, bool(args.data))
    dataset, checkpoint = open_images(args, data), file_hash(run.checkpoint)
    config = without_checkpoint_paths(run_config(run, args.base, overrides).model)
    identity = key_of(checkpoint=checkpoint, config=plain(config), dtype=str(dtype))
    reading = Reading(args.batch_size, Cache(enabled=not args.no_cache), args.save_every)
    images = TransformerData(dataset, model, args.workers)
    measured = evaluate_transformer(model, images, identity, reading)
    reading.finish()
    if own_share()[0] > 0:
        return
    scores = asdict(measured.counted.scores(model.n_codes))
    protocol = {
        "checkpoint": str(run.checkpoint),
        "checkpoint_hash": checkpoint,
        "global_step": step,
        "codes": model.n_codes,
        "code_shape": list(measured.counted.shape or ()),
        "order": type(model.permuter).__name__,
        "precision": str(dtype).removeprefix("torch."),
        "batch_size": args.batch_size,
    }
    sets = {"images": describe(measured, args, data)}
    seconds, line = time.monotonic() - start, command_line(argv, SCRIPT)
    result = make_result(scores, protocol, sets, seconds, device, line)
    result["by_class"] = measured.counted.by_class()
    result["by_position"] = measured.counted.map().tolist()
    path = write(result, measured, Path(args.outdir or run.folder / "evaluation"))
    print_scores(scores)
    print(
        f"step {step}; {path.name}, {path.with_suffix('.md').name} and plots are in {path.parent}"
    )


def print_scores(scores: dict[str, Any]) -> None:
    print(
        f"{scores['nats_per_token']:.4f} nats per token, {scores['bits_per_token']:.4f} bits "
        f"(uniform: {scores['uniform_nats_per_token']:.4f} nats)"
    )
    print(
        f"{scores['nats_per_dimension']:.5f} nats per dimension, "
        f"{scores['bits_per_dimension']:.5f} bits, of {scores['images']} images"
    )
    print(f"likeliest token right: {scores['top_1']:.2%}")


if __name__ == "__main__":
    main()

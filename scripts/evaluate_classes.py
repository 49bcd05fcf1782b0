"""How many samples a classifier finds to be of the class that they were drawn for.

    python scripts/evaluate_classes.py SAMPLES --judge resnet101

SAMPLES is a folder with a folder per class, as scripts/sample_fast.py writes it, a run (its samples
are drawn, and not kept), or a dataset's config (YAML: how well the classifier knows real images).
The classifier is any of torchvision with its published weights, one with weights of your own
(`resnet18:FILE`), or what scripts/report.py trained (`small:FILE`). JSON, Markdown and a plot of
the classes go to `<run>/evaluation/` or `evaluation/`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taming.devices import choose_device
from taming.distributed import own_share
from taming.errors import UserError, command
from taming.evaluation.arguments import (
    add_sources,
    drawing_from,
    make_parser,
    parse_sets,
    reading_from,
    source_for,
)
from taming.evaluation.cache import key_of
from taming.evaluation.metrics.accuracy import AccuracyTally
from taming.evaluation.tasks.classes import evaluate_accuracy
from taming.evaluation.metrics.accuracy import load_classifier
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.plots import plot_bars, plotted
from taming.evaluation.results import command_line, make_result, markdown_table, write_result
from taming.evaluation.sources.base import ImageSource
from taming.evaluation.sources.run import RunSource

SCRIPT = "scripts/evaluate_classes.py"


def write(result: dict[str, Any], tally: AccuracyTally, outdir: Path) -> Path:
    """All files of a result; returns the JSON's path."""
    classes = tally.counted.by_class()
    result["by_class"] = classes
    tables = [markdown_table([{"class": label} | row for label, row in classes.items()])]
    key = key_of(protocol=result["protocol"], sets=result["sets"])
    path = outdir / f"classes-{key[:8]}.json"
    top = {label: row["top_1"] for label, row in classes.items()}
    images = plotted(plot_bars, top, path.with_suffix(".png"), "share named right")
    return write_result(result, path, [*tables, *(f"![classes]({image.name})" for image in images)])


def outdir_of(images: ImageSource) -> Path:
    run = images.run.folder if isinstance(images, RunSource) else Path()
    return run / "evaluation"


@command
def main(argv: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    parser = make_parser("Classify samples of classes.")
    parser.usage = "%(prog)s SAMPLES --judge CLASSIFIER [flags]"
    parser.add_argument("--judge", required=True, help="resnet101, resnet18:FILE, small:FILE")
    add_sources(parser)
    args, names, overrides = parse_sets(parser, argv, most=1)
    if not names:
        raise UserError("give SAMPLES: a folder of class folders, a run or a dataset's YAML")
    device = choose_device(args.device)
    drawing = drawing_from(args, overrides, device)
    images = source_for(names[0], drawing, args.split, args.image_key, args.deep, args.workers)
    if isinstance(images, Statistics):
        raise UserError(f"{names[0]} holds statistics; a classifier needs the images themselves")
    judge = load_classifier(args.judge, device)
    reading = reading_from(args)
    tally = evaluate_accuracy(images, judge.classify, key_of(**judge.about), reading)
    reading.finish()
    if own_share()[0] > 0:
        return
    scores = tally.counted.scores()
    sets = {"samples": images.describe() | tally.content.describe()}
    seconds, line = time.monotonic() - start, command_line(argv, SCRIPT)
    result = make_result(scores, judge.about, sets, seconds, device, line)
    path = write(result, tally, args.outdir or outdir_of(images))
    print(f"named right {scores['top_1']:.2%}, among the first five {scores['top_5']:.2%}")
    print(f"{path.name} and {path.with_suffix('.md').name} are in {path.parent}")


if __name__ == "__main__":
    main()

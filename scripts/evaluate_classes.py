"""How many samples a classifier finds to be of the class that they were made for.

    python scripts/evaluate_classes.py SAMPLES --judge resnet101

SAMPLES is a folder with a folder per class, as scripts/sample_fast.py writes it, a run (its samples
are made, and not kept), or a dataset's config (YAML: how well the classifier knows real images).
The classifier is any of torchvision with its published weights, one with weights of your own
(`resnet18:FILE`), or what scripts/report.py trained (`small:FILE`). JSON, Markdown and a plot of
the classes go to `<run>/evaluation/` or `evaluation/`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from taming.atomic_files import check_place
from taming.command_line import from_flags
from taming.devices import device_of_command, own_share
from taming.errors import UserError, command, end_with_damaged
from taming.evaluation.arguments import (
    EvaluationArguments,
    RunSetArguments,
    add_set_flags,
    make_parser,
    open_sets,
    parse_sets,
)
from taming.evaluation.metrics.accuracy import (
    ClassificationAccuracy,
    ClassifiedImages,
    load_classifier,
)
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.plots import plot_bars, plotted
from taming.evaluation.reference import SAMPLES
from taming.evaluation.results import (
    command_line,
    make_result,
    markdown_table,
    short_hash,
    write_result,
)
from taming.evaluation.sources.images import key_of

SCRIPT = "evaluate_classes"


def write(result: dict[str, Any], accuracy: ClassificationAccuracy, outdir: Path) -> Path:
    """All files of a result; returns the JSON's path."""
    classes = accuracy.by_class()
    result["by_class"] = classes
    tables = [markdown_table([{"class": label} | row for label, row in classes.items()])]
    path = outdir / f"classes-{short_hash(result)}.json"
    top = {label: row["top_1"] for label, row in classes.items()}
    images = plotted(plot_bars, top, path.with_suffix(".png"), "share named right")
    return write_result(result, path, [*tables, *(f"![classes]({image.name})" for image in images)])


@command
def main(argv: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    parser = make_parser("Classify samples of classes.", EvaluationArguments)
    parser.usage = "%(prog)s SAMPLES --judge CLASSIFIER [flags]"
    parser.add_argument(
        "--judge",
        required=True,
        help="resnet101, resnet101@IMAGENET1K_V1, resnet18:FILE, small:FILE",
    )
    add_set_flags(parser, [SAMPLES])
    args, names, overrides = parse_sets(parser, argv, most=1)
    if not names:
        raise UserError("give SAMPLES: a folder of class folders, a run or a dataset's YAML")
    common = from_flags(EvaluationArguments, args)
    device = device_of_command(common.device)
    runner = common.cache.runner(from_flags(RunSetArguments, args).batch_size)
    (images,) = open_sets(names, args, overrides, device)
    if isinstance(images, Statistics):
        raise UserError(f"{names[0]} holds statistics; a classifier needs the images themselves")
    check_place(common.folder_for(images), "choose another --outdir")
    classifier = load_classifier(args.judge, device)
    key = runner.key_for(images, accuracy=key_of(**classifier.description))
    make = partial(ClassifiedImages, classifier.probabilities)
    manifest, accuracy = runner.run(images, make, key, "images")
    runner.finish()
    if own_share()[0] > 0:
        return
    scores, sets = accuracy.compute(), {"samples": images.describe() | manifest.describe()}
    seconds, line = time.monotonic() - start, command_line(argv, SCRIPT)
    result = make_result(
        scores, classifier.description, sets, seconds=seconds, device=device, command=line
    )
    path = write(result, accuracy, common.folder_for(images))
    print(f"named right {scores['top_1']:.2%}, among the first five {scores['top_5']:.2%}")
    print(f"{path.name} and {path.with_suffix('.md').name} are in {path.parent}")
    end_with_damaged(runner.left_out)


if __name__ == "__main__":
    main()

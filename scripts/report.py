"""Report on a trained transformer and its samples: numbers in JSON and a picture.

    python scripts/report.py -r logs/<run>

Reconstruction error, codebook usage and likelihood on the run's validation data; for samples of
classes, the share that a nearest-neighbor classifier of the training images names right. Where the
training data have classes, a small classifier of them is trained in seconds, and gives its own
distances (FID, KID, precision, recall) of the samples to the training images and its accuracy;
without classes it is one of groups of similar images. For numbers that can be compared with
published ones, use scripts/evaluate_fid.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.data import Subset

from taming.checkpoint import run_config
from taming.command_line import from_flags, parse
from taming.config import instantiate_from_config
from taming.data.checks import damage_found_later
from taming.data.codes import leave_codes_out
from taming.errors import UserError, absence, command, end_with_damaged
from taming.evaluation.checkpoints import HASH, OwnWeights, describe_checkpoint
from taming.evaluation.results import command_line, make_result, markdown_table, write_result
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.images import ImageSource
from taming.evaluation.sources.prepared import pictures_of_data
from taming.evaluation.tasks.report import ReportSets, make_report, newest_samples
from taming.sampling.arguments import RunArguments, make_parser
from taming.sampling.load import load_transformer
from taming.sampling.requests import sampling_script
from taming.sampling.sizes import trained_size
from taming.shipped import script
from taming.training.data_module import DataModuleFromConfig
from taming.weight_choice import weight_choice

SCRIPT = "report"
OWN = {
    "by_own_classifier": "the training images",
    "by_groups_of_images": "groups of similar training images",
}


@command
def main(argv: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    parser = make_parser("Report on a trained transformer and its samples.")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)  # of all scripts
    parser.add_argument(
        "--samples",
        type=Path,
        help="folder of samples (default: the newest that these weights made, of the training's "
        "size)",
    )
    args, overrides = parse(parser, argv)
    arguments = from_flags(RunArguments, args, overrides=tuple(overrides))
    # Reports are in float32, whatever --precision says.
    model, run, step = load_transformer(
        arguments.resume, arguments.base, arguments.chosen_device(), overrides
    )
    name = sampling_script(model)
    about = describe_checkpoint(run, step)
    weights = OwnWeights(about[HASH], weight_choice(), model, run.model)
    samples = args.samples or newest_samples(run.folder, name, trained_size(model), weights)
    if not samples.is_dir():
        raise UserError(f"{absence('folder', samples)}; make samples with {script(name)}")
    print(f"on the samples in {samples}")
    sampled = FolderSource(samples)
    say_of_which(sampled, weights, chosen=args.samples is not None, how=script(name))
    config = run_config(run, arguments.base, overrides)
    leave_codes_out(config)
    require_data(config)
    with damage_found_later():
        data = instantiate_from_config(config.data, "data", "data module")
        data.setup()
    outdir = Path(arguments.outdir or run.folder / "report")
    configs: list[str | Path] = [*run.configs, *arguments.base]
    stage, key = model.first_stage_model, model.first_stage_key
    training, validation = (
        pictures_of_data(
            *(stage, configs, split, key), overrides=overrides, workers=data.num_workers
        )
        for split in ("train", "validation")
    )
    sets = ReportSets(sampled, training, validation)
    left_out = damaged_of(validation)
    if isinstance(data, DataModuleFromConfig) and left_out:
        data.datasets["validation"] = Subset(data.datasets["validation"], validation.kept)
    report = make_report(model, data.val_dataloader, sets, outdir)
    report["metrics"]["samples"]["folder"] = str(samples)
    report["protocol"] |= about
    seconds, line = time.monotonic() - start, command_line(argv, SCRIPT)
    write(report, seconds, model.device, line, outdir)
    print_report(report["metrics"])
    print(f"step {step}; report.json, report.md and samples.png are in {outdir}")
    end_with_damaged([*left_out, *report["left_out"]])


def say_of_which(samples: FolderSource, weights: OwnWeights, *, chosen: bool, how: str) -> None:
    """Say if samples, that were `chosen` or found, are not known to be of the weights.

    Raises:
        UserError: if they were found, and others made them; `how` is the script that makes some.
    """
    made = samples.made_with
    if weights.made(made):
        return
    if not made:
        print("these samples do not say which weights made them")
        return
    step = made.get("global_step", "an unknown one")
    others = (
        f"{samples.path} was sampled with other weights than the checkpoint's, or another config "
        f"(at step {step})"
    )
    if not chosen:
        raise UserError(
            f"{others}; make samples with {how}, or name them with --samples to report on them all "
            "the same"
        )
    print(f"{others}: their numbers are not those of this checkpoint")


def require_data(config: DictConfig) -> None:
    """Raise `UserError` if the config lacks the images that samples are compared with."""
    sections = config.get("data", {}).get("params") or {}
    for split in ("train", "validation"):
        if not sections.get(split):
            raise UserError(
                f"the run has no data.params.{split}, and a report compares samples with training "
                "and validation images; add -b YAML with both"
            )


def damaged_of(source: ImageSource) -> list[str]:
    """Read all images of a set, and leave out what is damaged; returns a sentence for each."""
    source.pass_over_damage()
    for _ in source.batches(64):
        pass
    return source.leave_out_damaged()


def write(
    report: dict[str, Any], seconds: float, device: torch.device, line: list[str], outdir: Path
) -> None:
    """Metrics are in the JSON a second time, at its top, where older reports have them."""
    metrics = report["metrics"]
    result = make_result(
        metrics, report["protocol"], report["sets"], seconds=seconds, device=device, command=line
    )
    tables = []
    if report["by_class"]:
        result["by_class"] = report["by_class"]
        rows = [{"class": label} | row for label, row in report["by_class"].items()]
        tables = ["Samples by the run's own classifier:", markdown_table(rows)]
    write_result({**result, **metrics}, outdir / "report.json", tables)


def print_report(report: dict[str, Any]) -> None:
    stage, samples = report["first_stage"], report["samples"]
    error = (
        f"error  L1 {stage['l1']:.4f} (images in [-1, 1]), {stage['psnr']:.1f} dB"
        if "l1" in stage
        else f"of labels  {stage['pixel_accuracy']:.1%} of the pixels have their label"
    )
    print(f"reconstruction {error}")
    print(
        f"codebook usage        {stage['codebook_usage']:.1%}, "
        f"perplexity {stage['codebook_perplexity']:.1f}"
    )
    if transformer := report.get("transformer"):  # masked codes have no likelihood
        print(
            f"validation loss       {transformer['nats_per_token']:.3f} nats per token, "
            f"{transformer['bits_per_dimension']:.4f} bits per dimension "
            f"(uniform: {transformer['uniform_nats_per_token']:.3f} nats)"
        )
    if "named_right_by_5_neighbours" in samples:
        right = samples["named_right_by_5_neighbours"]
        print(f"samples named right   {right:.1%} of {samples['images']}")
    for name, what in OWN.items():
        if name in report:
            print(f"by a classifier of {what}, of samples (and of validation images):")
            print_own_classifier(report[name]["samples"], report[name]["validation_images"])


def print_own_classifier(samples: dict[str, Any], real: dict[str, Any]) -> None:
    def both(title: str, name: str, style: str) -> str:
        first, second = (values.get(name) for values in (samples, real))
        if isinstance(first, dict) and isinstance(second, dict):
            first, second = first["mean"], second["mean"]
        return f"{title} {first:{style}} ({second:{style}})"

    if "top_1" in samples and "top_1" in real:
        print(f"  {both('class right', 'top_1', '.1%')}")
    print(f"  {both('FID', 'fid', '.3f')}, {both('KID', 'kid', '.4f')}, {both('IS', 'isc', '.2f')}")
    print(f"  {both('precision', 'precision', '.2f')}, {both('recall', 'recall', '.2f')}")


if __name__ == "__main__":
    main()

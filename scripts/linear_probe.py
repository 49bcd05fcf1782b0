"""How much of an image's class first stages keep: linear probes of codes and of latents.

    python scripts/linear_probe.py -r logs/<run> [-r logs/<run> ...] --images FOLDER

FOLDER has a folder of images per class; --data names a dataset with classes instead. Logistic
regression predicts the class of held-out images (cross-validation) from the shares of the codes,
from the codebook vectors, and from the latents before they are quantized. Accuracies with their
deviations over the folds, and the level of chance, go to a table (also for LaTeX) and a JSON file
in `<first run>/evaluation/`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from taming.atomic_files import check_place, write_text
from taming.command_line import flag, from_flags, parse
from taming.config import without_checkpoint_paths
from taming.devices import choose_dtype, device_of_command, dtype_name, own_share
from taming.errors import UserError, command, end_with_damaged
from taming.evaluation.arguments import EvaluationArguments, make_parser
from taming.evaluation.latex import UP, latex_table
from taming.evaluation.metrics.linear_probe import ProbeScores, ProbeSettings
from taming.evaluation.results import (
    command_line,
    make_result,
    markdown_table,
    short_hash,
    write_result,
)
from taming.evaluation.runner import Runner
from taming.evaluation.sources.images import ImageSource, Manifest
from taming.evaluation.tasks.first_stage import FirstStageArguments, LoadedFirstStage
from taming.evaluation.tasks.first_stage_images import FirstStageImages
from taming.evaluation.tasks.probe import (
    KINDS,
    LATENTS,
    FeatureKinds,
    ProbedFeatures,
    keep_per_class,
    parse_kinds,
    probe_all,
)
from taming.sampling.arguments import require_positive
from taming.weight_choice import weight_choice

SCRIPT = "linear_probe"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of all evaluations."""

    common: EvaluationArguments
    chosen: FirstStageImages
    probe: ProbeSettings
    first_stages: FirstStageArguments
    features: tuple[str, ...] = flag(KINDS, f"comma list of {', '.join(KINDS)}", parse=parse_kinds)
    grid: int = flag(
        4, "cells a side over which codes and latents are averaged; 0: every position by itself"
    )
    per_class: int | None = flag(None, "the first n images of each class folder (default: all)")
    batch_size: int = flag(16, "images at once")

    def __post_init__(self) -> None:
        require_positive(batch_size=self.batch_size, per_class=self.per_class)
        if self.grid < 0:
            raise UserError(f"--grid must be at least 0, not {self.grid}")


@dataclass(frozen=True)
class Probed:
    """The scores of a first stage by kind of features, and the images that they are of."""

    stage: LoadedFirstStage
    manifest: Manifest
    scores: dict[str, ProbeScores]


def run_probe(
    own: Arguments, stage: LoadedFirstStage, images: ImageSource, runner: Runner
) -> Probed | None:
    """None in processes other than that of rank 0."""
    device = device_of_command(own.common.device)
    kinds = FeatureKinds(own.features, own.grid, choose_dtype(own.common.precision, device))
    model = stage.model.to(device)
    key = runner.key_for(
        images,
        checkpoint=stage.checkpoint_hash,
        weights=weight_choice(),
        model=without_checkpoint_paths(stage.config.model),
        kinds=asdict(kinds),
        device=device.type,
        torch=torch.__version__,
    )
    manifest, counted = runner.run(images, lambda: ProbedFeatures(model, kinds), key, stage.name)
    model.to("cpu")
    if own_share()[0] > 0:
        return None
    if LATENTS in own.features and LATENTS not in counted.banks:
        log.warning("%s: its class has no encode_to_prequant, so %s are out", stage.name, LATENTS)
    return Probed(stage, manifest, probe_all(manifest, counted, own.probe))


def table_rows(probed: Sequence[Probed]) -> list[dict[str, Any]]:
    """A row per first stage and kind of features; accuracies in percent."""
    return [
        {
            "first stage": one.stage.name,
            "features": kind,
            "dimensions": scores.dimensions,
            "accuracy (%)": f"{100 * scores.accuracy:.2f}",
            "std": f"{100 * scores.std:.2f}",
            "chance (%)": f"{100 * scores.chance:.2f}",
            "classes": scores.classes,
            "images": scores.images,
        }
        for one in probed
        for kind, scores in one.scores.items()
    ]


def results_folder(own: Arguments, first: LoadedFirstStage) -> Path:
    return own.common.outdir or first.run.folder / "evaluation"


def write(own: Arguments, probed: Sequence[Probed], result: dict[str, Any]) -> Path:
    """JSON, Markdown and LaTeX; returns the JSON's path."""
    outdir = results_folder(own, probed[0].stage)
    rows = table_rows(probed)
    path = write_result(result, outdir / f"probe-{short_hash(result)}.json", [markdown_table(rows)])
    write_text(path.with_suffix(".tex"), latex_table(rows, {"accuracy (%)": UP}))
    return path


@command
def main(argv: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    args, overrides = parse(make_parser("Probe first stages for classes.", Arguments), argv)
    own = from_flags(Arguments, args)
    stages = own.first_stages.load(overrides)
    check_place(results_folder(own, stages[0]), "choose another --outdir")
    images = own.chosen.prepared(stages, own.first_stages.base, overrides, own.common.cache.workers)
    if images.has_classes() is False:
        raise UserError(f"{own.chosen.images} has no class folders; a probe needs classes")
    if own.per_class:
        keep_per_class(images, own.per_class)
    runner = own.common.cache.runner(own.batch_size)
    done = [one for stage in stages if (one := run_probe(own, stage, images, runner)) is not None]
    runner.finish()
    if not done:
        return
    device = device_of_command(own.common.device)
    precision = dtype_name(choose_dtype(own.common.precision, device))
    protocol = {**own.probe.describe(), "features": list(own.features), "grid": own.grid}
    sets = {"images": {**images.describe(), **done[0].manifest.describe()}}
    result = make_result(
        {one.stage.name: {kind: asdict(s) for kind, s in one.scores.items()} for one in done},
        {**protocol, "precision": precision},
        sets | {one.stage.name: one.stage.describe() for one in done},
        seconds=time.monotonic() - start,
        device=device,
        command=command_line(argv, SCRIPT),
    )
    path = write(own, done, result)
    print(markdown_table(table_rows(done)))
    print(f"{path.name}, its .md and .tex are in {path.parent}")
    end_with_damaged(runner.left_out)


if __name__ == "__main__":
    main()

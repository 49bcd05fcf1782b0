"""Compare first stages on the same images: reconstructions, rFID and the use of their codes.

    python scripts/evaluate_first_stage.py -r logs/<run> [-r logs/<run> ...]

Of a transformer's run its first stage is taken; DALL-E's dVAE is one of them. The images are the
first run's validation data, or those of --images or --data. A table (also for LaTeX), a JSON file
that says how the numbers were made, a picture of the same images through each first stage, and the
codes' histograms go to `<first run>/evaluation/`. An interrupted evaluation goes on when the same
command is given again; `torchrun --nproc_per_node 4 scripts/evaluate_first_stage.py ...` shares the
work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from taming.atomic_files import check_place, write_text
from taming.command_line import flag, from_flags, parse
from taming.devices import choose_dtype, device_of_command, own_share
from taming.errors import UserError, command, end_with_damaged
from taming.evaluation.arguments import (
    EvaluationArguments,
    ExtractorArguments,
    extractor_name,
    make_parser,
)
from taming.evaluation.latex import latex_table
from taming.evaluation.metrics.features import INCEPTION, Extractor, weights_file
from taming.evaluation.metrics.lpips import load_networks
from taming.evaluation.presets import PRESET_HELP, noted, with_preset
from taming.evaluation.results import (
    command_line,
    make_result,
    markdown_table,
    short_hash,
    write_result,
)
from taming.evaluation.sources.prepared import PreparedSource
from taming.evaluation.sources.resize import FILTERS
from taming.evaluation.tasks.fidelity import FidelitySettings
from taming.evaluation.tasks.first_stage import (
    FirstStageArguments,
    FirstStageEvaluator,
    FirstStageResult,
    LoadedFirstStage,
)
from taming.evaluation.tasks.first_stage_comparison import (
    BY_RESIZE,
    better_ends,
    comparison_picture,
    file_name,
    level_rows,
    notes,
    reasons,
    table_rows,
    use_of_codes,
    write_codes,
    write_pairs,
)
from taming.evaluation.tasks.first_stage_images import FirstStageImages, parse_filters
from taming.evaluation.tasks.time_ahead import Part, part_of_pass
from taming.sampling.arguments import require_positive

SCRIPT = "evaluate_first_stage"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of all evaluations and of the extractor."""

    common: EvaluationArguments
    extraction: ExtractorArguments
    first_stages: FirstStageArguments
    batch_size: int = flag(16, "images at once")
    chosen: FirstStageImages
    reference_resize: tuple[str, ...] = flag(
        (),
        f"filters that bring whole images to --size (256), an rFID each: {', '.join(FILTERS)} "
        "(default: images as training sees them, or as --size alone resizes them)",
        metavar="FILTER,...",
        parse=parse_filters,
    )
    rfid_resamples: int = flag(
        0, "sets of images drawn with replacement, for the deviation of the rFID (0: not computed)"
    )
    speed_rounds: int = flag(5, "timed rounds with one batch, for images a second; 0: not timed")
    rows: int = flag(8, "images in the picture")
    preset: str | None = flag(None, PRESET_HELP)
    vgg_path: Path | None = flag(None, "torchvision's VGG16, for LPIPS", metavar="FILE")
    alex_path: Path | None = flag(None, "torchvision's AlexNet, for LPIPS", metavar="FILE")

    def __post_init__(self) -> None:
        require_positive(rows=self.rows, batch_size=self.batch_size)
        if self.speed_rounds < 0:
            raise UserError(f"--speed_rounds must be at least 0, not {self.speed_rounds}")
        if self.rfid_resamples < 0 or self.rfid_resamples == 1:
            raise UserError(f"--rfid_resamples is 0, or at least 2, not {self.rfid_resamples}")

    def describe(self) -> dict[str, Any]:
        """What decides which numbers there are, beside the evaluator's own, as JSON values."""
        return {"reference_resize": list(self.reference_resize), "speed_rounds": self.speed_rounds}


Evaluators = list[tuple[FirstStageEvaluator, PreparedSource]]
"""One per resize; the first counts everything, the others the rFID, if there is one."""


def make_evaluators(
    own: Arguments, stages: Sequence[LoadedFirstStage], overrides: Sequence[str]
) -> Evaluators:
    evaluators: Evaluators = []
    workers = own.common.cache.workers
    first = None
    for resize in own.reference_resize or (None,):
        images = own.chosen.prepared(
            stages, own.first_stages.base, overrides, workers, resize=resize
        )
        if first is None:
            first = evaluator = make_evaluator(own, stages[0].model.reads_labels)
        elif first.extractor is None:
            break  # nothing would be counted
        else:
            evaluator = replace(first, metrics=(), rfid_resamples=0, _originals={})
        evaluators.append((evaluator, images))
    return evaluators


def evaluate(
    own: Arguments, evaluators: Evaluators, stage: LoadedFirstStage
) -> FirstStageResult | None:
    """All numbers of a first stage; None in processes other than that of rank 0."""
    results = [evaluator(stage, images) for evaluator, images in evaluators]
    first, (evaluator, images) = results[0], evaluators[0]
    if first is None:
        return None
    if own.reference_resize and "rfid" in first.metrics:
        there = zip(own.reference_resize, results, strict=True)
        first.metrics[BY_RESIZE] = {how: one.metrics["rfid"] for how, one in there if one}
    if own.speed_rounds:
        first = replace(first, speed=evaluator.speed(stage, images, own.speed_rounds))
    return first


def rfid_extractor(own: Arguments, device: torch.device) -> tuple[Extractor | None, str | None]:
    """The extractor of the rFID, or why there is none.

    Raises:
        UserError: for a wrong --extractor, --layer or --weights.
    """
    extraction, common = own.extraction, own.common
    settings = FidelitySettings(("fid",), dict(extraction.layer))
    name = extractor_name(extraction.extractor or INCEPTION)
    settings.layer("fid", name)
    try:
        weights_file(name, extraction.extractor_weights)
    except UserError as error:
        if extraction.extractor_weights:
            raise
        log.warning("rFID is left out, everything else is computed: %s", error)
        return None, str(error)
    return extraction.build(settings, device, common.precision, common.compile), None


def make_evaluator(own: Arguments, reads_labels: bool) -> FirstStageEvaluator:
    """With the networks whose files are there."""
    device = device_of_command(own.common.device)
    evaluator = FirstStageEvaluator(
        device=device,
        dtype=choose_dtype(own.common.precision, device),
        runner=own.common.cache.runner(own.batch_size),
        rfid_resamples=own.rfid_resamples,
    )
    if reads_labels:
        return evaluator
    networks = load_networks(device=device, files={"vgg": own.vgg_path, "alex": own.alex_path})
    extractor, reason = rfid_extractor(own, device)
    left_out = {} if reason is None else {"rfid": reason}
    return replace(evaluator, networks=networks, extractor=extractor, left_out=left_out)


def write(
    outdir: Path,
    evaluator: FirstStageEvaluator,
    results: Sequence[FirstStageResult],
    seconds: float,
    line: list[str],
    *,
    settings: Mapping[str, Any],
    preset: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> Path:
    """The numbers: all of them in JSON, tables in Markdown, a CSV of the images per first stage."""
    sets = {"images": results[0].images, **{r.name: r.reconstructions for r in results}}
    protocol = {**evaluator.describe(), **settings}
    metrics = {r.name: r.metrics for r in results}
    result = make_result(
        metrics, protocol, sets, seconds=seconds, device=evaluator.device, command=line
    )
    result["left_out"] = {r.name: r.left_out for r in results}
    result["classes"] = {r.name: r.classes for r in results}
    result["parameters"] = {r.name: r.parameters for r in results}
    result["images_a_second"] = {r.name: asdict(r.speed) for r in results if r.speed}
    path = outdir / f"first_stages-{short_hash(result)}" / "first_stages.json"
    rows = table_rows(results)
    sentences = [*notes(results), *reasons(results), use_of_codes(results)]
    tables = [
        markdown_table(rows),
        *level_tables(results),
        *sentences,
        *class_tables(results),
        *noted(result, preset, given or {}),
    ]
    write_result(result, path, tables)
    write_text(path.with_suffix(".tex"), latex_table(rows, better_ends(rows)))
    for r in results:
        if r.values:
            write_pairs(r.values, path.parent / f"images-{file_name(r.name)}.csv")
    write_codes(results, path.parent)
    return path


def level_tables(results: Sequence[FirstStageResult]) -> list[str]:
    """One table, if any of the first stages has several levels."""
    rows = level_rows(results)
    return [markdown_table(rows)] if rows else []


def class_tables(results: Sequence[FirstStageResult]) -> list[str]:
    """A table per first stage with a row per class, for images with classes."""
    return [
        f"{result.name}:\n\n"
        + markdown_table([{"class": label, **means} for label, means in result.classes.items()])
        for result in results
        if result.classes
    ]


class Job:
    """What one command line asks for."""

    def __init__(self, argv: Sequence[str] | None) -> None:
        parser = make_parser("Compare first stages on the same images.", Arguments)
        args, overrides = parse(parser, with_preset(parser, argv, SCRIPT))
        self.given, self.own = vars(args), from_flags(Arguments, args)
        self.stages = self.own.first_stages.load(overrides)
        self.evaluators = make_evaluators(self.own, self.stages, overrides)

    def parts(self) -> Iterator[Part]:
        """How long it will take, by trials."""
        for stage in self.stages:
            for evaluator, images in self.evaluators:
                model = stage.model.to(evaluator.device)
                counted = evaluator.accumulator(model, len(images))
                doing, batch_size = f"evaluating {stage.name} on", evaluator.runner.batch_size
                yield part_of_pass(doing, images, counted.update, batch_size)
                model.to("cpu")


def time_ahead(argv: Sequence[str]) -> Iterator[Part]:
    """How long a command will take, before it starts."""
    return Job(argv).parts()


@command
def main(argv: Sequence[str] | None = None) -> None:
    start, job = time.monotonic(), Job(argv)
    own, stages, evaluators = job.own, job.stages, job.evaluators
    outdir = own.common.outdir or stages[0].run.folder / "evaluation"
    check_place(outdir, "choose another --outdir")
    results = [r for stage in stages if (r := evaluate(own, evaluators, stage)) is not None]
    evaluator, images = evaluators[0]
    evaluator.runner.finish()
    if own_share()[0] > 0:
        return
    path = write(
        outdir,
        evaluator,
        results,
        time.monotonic() - start,
        command_line(argv, SCRIPT),
        settings=own.describe(),
        preset=own.preset,
        given=job.given,
    )
    comparison_picture(evaluator, stages, images, own.rows).save(path.with_suffix(".png"))
    print(markdown_table(table_rows(results)), *level_tables(results), sep="\n\n")
    print(use_of_codes(results))
    print(f"{path.name}, its .md, .tex and .png, and what is behind them are in {path.parent}")
    end_with_damaged(evaluator.runner.left_out)


if __name__ == "__main__":
    main()

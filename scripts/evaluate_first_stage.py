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
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from taming.command_line import flag, from_flags, parse, parse_size
from taming.devices import choose_device, choose_dtype, own_share
from taming.errors import UserError, command, end_with_damaged
from taming.evaluation.arguments import (
    EvaluationArguments,
    ExtractorArguments,
    extractor_name,
    make_parser,
)
from taming.evaluation.metrics.features import INCEPTION, Extractor, weights_file
from taming.evaluation.metrics.lpips import load_networks
from taming.evaluation.presets import PRESET_HELP, noted, with_preset
from taming.evaluation.results import command_line, make_result, markdown_table, write_result
from taming.evaluation.sources.dataset import DatasetSource
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.images import LoadedSource, key_of
from taming.evaluation.sources.prepared import LabelSource, PreparedSource
from taming.evaluation.tasks.fidelity import FidelitySettings
from taming.evaluation.tasks.first_stage import (
    FirstStageEvaluator,
    FirstStageResult,
    LoadedFirstStage,
    load_first_stages,
)
from taming.evaluation.tasks.first_stage_comparison import (
    comparison_picture,
    file_name,
    reasons,
    table_rows,
    write_codes,
    write_pairs,
)
from taming.limits import check_picture
from taming.sampling.arguments import require_positive

SCRIPT = "scripts/evaluate_first_stage.py"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of all evaluations and of the extractor."""

    common: EvaluationArguments
    extraction: ExtractorArguments
    resume: tuple[str, ...] = flag(
        MISSING,
        "a run's folder or checkpoint (may be repeated)",
        "-r",
        metavar="RUN",
        repeated=True,
    )
    base: tuple[str, ...] = flag(
        (), "merged over the runs' configs", "-b", metavar="YAML", nargs="*"
    )
    batch_size: int = flag(16, "images at once")
    images: Path | None = flag(
        None, "of images (default: the first run's validation data)", metavar="FOLDER"
    )
    deep: bool = flag(False, "and of folders below it")
    data: Path | None = flag(None, "with a data section, for the images", metavar="YAML")
    split: str = flag("validation", "train, validation or test")
    image_key: str | None = flag(None, "the items' entry (default: the first stage's own)")
    size: tuple[int, int] | None = flag(
        None,
        "resize and crop to height,width in pixels, or to a square (default: as is)",
        parse=parse_size,
    )
    num_images: int | None = flag(None, "the first n images (default: all)", "-n")
    rows: int = flag(8, "images in the picture")
    preset: str | None = flag(None, PRESET_HELP)
    vgg_path: Path | None = flag(None, "torchvision's VGG16, for LPIPS", metavar="FILE")
    alex_path: Path | None = flag(None, "torchvision's AlexNet, for LPIPS", metavar="FILE")

    def __post_init__(self) -> None:
        if self.images and self.data:
            raise UserError("--images and --data both name the images; give one of them")
        require_positive(rows=self.rows, batch_size=self.batch_size, num_images=self.num_images)
        if self.size is not None:
            check_picture(*self.size)


def prepared_images(
    own: Arguments, stages: Sequence[LoadedFirstStage], overrides: Sequence[str]
) -> PreparedSource:
    """The same images for all first stages, in whole codes of each of them."""
    multiple = math.lcm(*(stage.model.downsampling_factor for stage in stages))
    return PreparedSource(_source(own, stages, overrides), own.size, multiple, own.num_images)


def _source(
    own: Arguments, stages: Sequence[LoadedFirstStage], overrides: Sequence[str]
) -> LoadedSource:
    reads_labels, workers = stages[0].model.reads_labels, own.common.cache.workers
    if own.images and reads_labels:
        raise UserError("--images holds images in color, and the first stage takes segmentations")
    if own.size and reads_labels:
        raise UserError("--size resizes images in color, and the first stage takes segmentations")
    if own.images:
        return FolderSource(own.images, own.deep or None, workers)
    config = [own.data] if own.data else _own_data(own, stages)
    key = own.image_key or stages[0].image_key
    runs = [stage.run for stage in stages]
    options: dict[str, Any] = {"overrides": overrides, "workers": workers, "runs": runs}
    if reads_labels:
        labels = stages[0].model.channels
        return LabelSource(labels, config, own.split, key, **options)
    return DatasetSource(config, own.split, key, **options)


def _own_data(own: Arguments, stages: Sequence[LoadedFirstStage]) -> list[str | Path]:
    """The configs of the first run that has data of the split."""
    for stage in stages:
        if stage.config.get("data", {}).get("params", {}).get(own.split):
            return [*stage.run.configs, *own.base]
    raise UserError(
        f"none of the runs has {own.split} data of its own; give --images FOLDER or --data YAML"
    )


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
    device = choose_device(own.common.device)
    evaluator = FirstStageEvaluator(
        device=device,
        dtype=choose_dtype(own.common.precision, device),
        runner=own.common.cache.runner(own.batch_size),
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
    preset: str | None = None,
) -> Path:
    """The numbers: all of them in JSON, tables in Markdown, a CSV of the images per first stage."""
    sets = {"images": results[0].images, **{r.name: r.reconstructions for r in results}}
    protocol = evaluator.describe()
    metrics = {r.name: r.metrics for r in results}
    result = make_result(
        metrics, protocol, sets, seconds=seconds, device=evaluator.device, command=line
    )
    result["left_out"] = {r.name: r.left_out for r in results}
    result["classes"] = {r.name: r.classes for r in results}
    key = key_of(protocol=protocol, sets=sets)
    path = outdir / f"first_stages-{key[:8]}" / "first_stages.json"
    tables = [markdown_table(table_rows(results)), *reasons(results), *class_tables(results)]
    tables += noted(result, preset)
    write_result(result, path, tables)
    for r in results:
        if r.values:
            write_pairs(r.values, path.parent / f"images-{file_name(r.name)}.csv")
    write_codes(results, path.parent)
    return path


def class_tables(results: Sequence[FirstStageResult]) -> list[str]:
    """A table per first stage with a row per class, for images with classes."""
    return [
        f"{result.name}:\n\n"
        + markdown_table([{"class": label, **means} for label, means in result.classes.items()])
        for result in results
        if result.classes
    ]


@command
def main(argv: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    parser = make_parser("Compare first stages on the same images.", Arguments)
    args, overrides = parse(parser, with_preset(parser, argv, SCRIPT))
    own = from_flags(Arguments, args)
    stages = load_first_stages(own.resume, own.base, overrides)
    images = prepared_images(own, stages, overrides)
    evaluator = make_evaluator(own, stages[0].model.reads_labels)
    results = [result for stage in stages if (result := evaluator(stage, images)) is not None]
    evaluator.runner.finish()
    if own_share()[0] > 0:
        return
    outdir = own.common.outdir or stages[0].run.folder / "evaluation"
    path = write(
        outdir,
        evaluator,
        results,
        time.monotonic() - start,
        command_line(argv, SCRIPT),
        preset=own.preset,
    )
    comparison_picture(evaluator, stages, images, own.rows).save(path.with_suffix(".png"))
    print(markdown_table(table_rows(results)))
    print(f"{path.name}, its .md and .png, and what is behind them are in {path.parent}")
    end_with_damaged(evaluator.runner.left_out)


if __name__ == "__main__":
    main()

"""FID, SceneFID and Inception Score of scenes that a run samples for the layouts of its data.

    python scripts/evaluate_scenes.py -r logs/<run> --samples_per_layout 5

The images go from the model into the metrics, without files in between; they are those of
scripts/make_scene_samples.py with the same flags. They are compared with the images that the
layouts were taken of, as a whole and object by object (SceneFID: crops by the boxes, 224 x 224).
JSON and Markdown go to `<run>/evaluation/`. An interrupted evaluation goes on when the same command
is given again; `torchrun --nproc_per_node 4 scripts/evaluate_scenes.py ...` shares the work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from taming.atomic_files import check_place
from taming.checkpoint import Run, run_config
from taming.command_line import flag, from_flags, parse, parse_size
from taming.config import plain, without_checkpoint_paths
from taming.data.checks import damage_found_later
from taming.devices import choose_dtype, device_of_command
from taming.errors import UserError, command, end_with_damaged
from taming.evaluation.arguments import CacheArguments, ExtractorArguments
from taming.evaluation.checkpoints import describe_checkpoint
from taming.evaluation.metrics.inception_score import InceptionScoreSettings
from taming.evaluation.presets import PRESET_HELP, noted, with_preset
from taming.evaluation.reference import REFERENCE, RESIZES_TEXT, Choice
from taming.evaluation.results import (
    command_line,
    make_result,
    markdown_table,
    short_hash,
    write_result,
)
from taming.evaluation.sources.images import SourceImage
from taming.evaluation.sources.resize import AS_IT_IS, NONE, Resizing
from taming.evaluation.sources.scenes import (
    Layouts,
    RealScenes,
    SampledScenes,
    SceneImage,
    cut_objects,
)
from taming.evaluation.tasks.fidelity import FidelitySettings
from taming.evaluation.tasks.scenes import SceneEvaluation, evaluate_scenes
from taming.evaluation.tasks.time_ahead import (
    Part,
    extracting,
    part_of_pass,
    part_of_sampling,
)
from taming.sampling.arguments import RunArguments, SampleArguments, make_parser, require_positive
from taming.sampling.load import data_config, load_transformer, open_dataset
from taming.sampling.sizes import tokens_for

SCRIPT = "evaluate_scenes"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of the run and the extractor."""

    cache: CacheArguments
    sampling: SampleArguments
    inception_score: InceptionScoreSettings
    data: str | None = flag(None, "with a data section (default: the run's)", metavar="YAML")
    split: str | None = flag(None, "validation (default), train or test")
    size: tuple[int, int] = flag(
        (256, 256), "height,width in pixels", "-R", "--resolution", parse=parse_size
    )
    conditional: str = flag("objects_bbox", "or objects_center_points", "-C")
    num_layouts: int | None = flag(None, "of the data (default: all)", "-n")
    samples_per_layout: int = flag(5, "of each layout", "-N")
    min_object_side: float = flag(
        1.0, "pixels that an object has at least, either way, to count for SceneFID"
    )
    reference_resize: str | None = flag(
        None, f"of the real images, {RESIZES_TEXT}, as the data say (default)"
    )
    reference_size: int | None = flag(
        None, "pixels a side of the real images (default: as the data say)"
    )
    sampler_precision: str | None = flag(
        None, "of the transformer, if it is not that of --precision"
    )
    compile: bool = flag(False, "torch.compile; for many images")
    preset: str | None = flag(None, PRESET_HELP)

    def __post_init__(self) -> None:
        require_positive(num_layouts=self.num_layouts, samples_per_layout=self.samples_per_layout)
        if not self.min_object_side > 0:
            raise UserError(f"--min_object_side must be above 0, not {self.min_object_side}")

    def resizing(self, layouts: Layouts) -> Resizing:
        """Of the real images, whose crops are the layouts' own.

        Raises UserError for an unknown name, a size below 1, or a filter without a size.
        """
        choice = Choice(REFERENCE, self.reference_resize, side=self.reference_size)
        if choice.says_nothing or choice.resize == NONE:
            return AS_IT_IS
        size = choice.size or layouts.resizing["size"]
        if size is None:
            raise UserError("the data do not say a size; give --reference_size")
        return choice.resizing(tuple(size))


def sampled_scenes(own: Arguments, arguments: RunArguments) -> tuple[SampledScenes, Run]:
    """What is to be sampled, and the run."""
    device, overrides = device_of_command(arguments.device), arguments.overrides
    dtype = choose_dtype(own.sampler_precision or arguments.precision, device)
    model, run, step = load_transformer(arguments.resume, arguments.base, device, overrides, dtype)
    base = [own.data] if own.data else arguments.base
    data = data_config(run, base, overrides, own.data is not None)
    config = run_config(run, arguments.base, overrides, ["model"])
    config = without_checkpoint_paths(config.model)
    samples = SampledScenes(
        layouts=Layouts(open_dataset(data, own.split), own.num_layouts, own.conditional),
        model=model,
        identity={
            "path": str(arguments.resume),
            **describe_checkpoint(run, step),
            "model": plain(config),
        },
        per_layout=own.samples_per_layout,
        settings=own.sampling.settings,
        seed=own.sampling.seed,
        shape=tokens_for(model, own.size),
        dtype=dtype,
        compiled=own.compile,
        batch_size=own.sampling.batch_size,
    )
    return samples, run


def print_metrics(evaluation: SceneEvaluation) -> None:
    metrics, sets = evaluation.metrics, evaluation.sets
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


class Job:
    """What one command line asks for."""

    def __init__(self, argv: Sequence[str] | None) -> None:
        parser = make_parser(
            "Evaluate scenes that a run samples.",
            Arguments,
            ExtractorArguments,
            top_k=100,
            batch_size=20,
        )
        args, overrides = parse(parser, with_preset(parser, argv, SCRIPT))
        self.given, self.own = vars(args), from_flags(Arguments, args)
        self.arguments = from_flags(RunArguments, args, overrides=tuple(overrides))
        extraction, own = from_flags(ExtractorArguments, args), self.own
        self.device = device_of_command(self.arguments.device)
        of_metrics = {"isc": own.inception_score}
        layers = dict(extraction.layer)
        self.settings = FidelitySettings(("fid", "isc"), layers, of_metrics=of_metrics)
        precision = self.arguments.precision
        self.extractor = extraction.build(self.settings, self.device, precision, own.compile)
        self.runner = own.cache.runner(own.sampling.batch_size)
        with damage_found_later():
            self.samples, self.run = sampled_scenes(own, self.arguments)

    def parts(self) -> Iterator[Part]:
        """How long it will take, by trials."""
        own, layouts = self.own, self.samples.layouts
        yield part_of_sampling(self.samples, own.sampling.batch_size)
        real, count = RealScenes(layouts, own.resizing(layouts)), self._count_objects
        doing = "extracting the features of the reference's"
        yield part_of_pass(doing, real, count, own.sampling.batch_size)

    def _count_objects(self, batch: Sequence[SourceImage]) -> None:
        """Features of images and of their objects."""
        extracting([self.extractor])(batch)
        scenes = (image for image in batch if isinstance(image, SceneImage))
        crops = [cut_objects(one.pixels, one.boxes, self.own.min_object_side) for one in scenes]
        for part in torch.cat(crops).split(len(batch)):
            self.extractor(part)


def time_ahead(argv: Sequence[str]) -> Iterator[Part]:
    """How long a command will take, before it starts."""
    return Job(argv).parts()


@command
def main(argv: Sequence[str] | None = None) -> None:
    start, job = time.monotonic(), Job(argv)
    own, samples = job.own, job.samples
    outdir = Path(job.arguments.outdir or job.run.folder / "evaluation")
    check_place(outdir, "choose another --outdir")
    left_out = samples.layouts.leave_out_damaged()
    evaluation = evaluate_scenes(
        samples,
        job.extractor,
        job.runner,
        job.settings,
        own.min_object_side,
        resizing=own.resizing(samples.layouts),
    )
    job.runner.finish()
    if evaluation is None:
        return
    seconds, line = time.monotonic() - start, command_line(argv, SCRIPT)
    result = make_result(
        evaluation.metrics,
        evaluation.protocol,
        evaluation.sets,
        seconds=seconds,
        device=job.device,
        command=line,
    )
    result["by_sample"] = evaluation.rows
    tables = [markdown_table(evaluation.rows), *noted(result, own.preset, job.given)]
    path = write_result(result, outdir / f"scenes-{short_hash(result)}.json", tables)
    print_metrics(evaluation)
    print(f"{path.name} and {path.with_suffix('.md').name} are in {path.parent}")
    end_with_damaged(left_out)


if __name__ == "__main__":
    main()

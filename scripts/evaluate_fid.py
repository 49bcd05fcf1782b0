"""FID, Inception Score, KID, precision and recall of a set of images against another.

    python scripts/evaluate_fid.py SAMPLES REFERENCE --metrics fid,isc,kid,prc
    python scripts/evaluate_fid.py SAMPLES REFERENCE --metrics all --evaluators adm,clean-fid

Each is a folder of images, a dataset's config (YAML), a run (its samples are made, and not kept),
an .npz of images, or, as reference for FID, an .npz of scripts/compute_statistics.py. The numbers
go to a JSON file that says how they were made, and a table beside it. An interrupted evaluation
goes on when the same command is given again; `torchrun --nproc_per_node 4
scripts/evaluate_fid.py ...` shares the work.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taming.atomic_files import atomic_path, check_place
from taming.command_line import add_flags, flag, from_flags
from taming.devices import choose_dtype, device_of_command
from taming.errors import UserError, command, end_with_damaged
from taming.evaluation.arguments import (
    EvaluationArguments,
    RunSetArguments,
    add_metric_flags,
    add_set_flags,
    make_parser,
    open_sets,
    parse_sets,
)
from taming.evaluation.evaluator_arguments import FidelityExtractorArguments, make_evaluator
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.plots import (
    nearest,
    neighbors_picture,
    plot_classes,
    plot_sweep,
    plotted,
)
from taming.evaluation.presets import PRESET_HELP, noted, with_preset
from taming.evaluation.results import (
    Result,
    command_line,
    differences,
    make_result,
    markdown_table,
    read_result,
    short_hash,
    write_result,
)
from taming.evaluation.sources.images import LoadedSource
from taming.evaluation.sources.run import RunSource
from taming.evaluation.tasks.fidelity import Evaluation, ImageSet, flattened
from taming.evaluation.tasks.first_stage import LoadedFirstStage
from taming.evaluation.tasks.reconstructed_set import ReconstructedSource
from taming.evaluation.tasks.side_by_side import SideBySide
from taming.evaluation.tasks.sweep import (
    evaluate_sweep,
    parse_sweep,
    row,
    shown,
    start_of_sweep,
)
from taming.evaluation.tasks.time_ahead import Part, extracting, part_of_pass, part_of_sampling
from taming.shipped import script, script_of

SCRIPT = "evaluate_fid"
ROWS = 8  # samples in the picture of neighbors

Evaluated = tuple[dict[str, Any], Evaluation]
"""The settings of a sweep that were chosen, and the numbers."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script alone."""

    preset: str | None = flag(None, PRESET_HELP)
    sweep: str | None = flag(
        None,
        'of a run\'s settings, as "top_k=50,100;top_p=0.9,1.0;acceptance=1,0.5": table and chart',
    )
    neighbors: int = flag(
        0, "picture of the nearest K images", hidden=("--neighbours",), metavar="K"
    )
    reconstruct: str | None = flag(
        None,
        "SAMPLES is a first stage's run: its reconstructions of this split of REFERENCE's config",
        metavar="SPLIT",
    )
    reproduce: Path | None = flag(None, "run this result again and compare", metavar="JSON")
    tolerance: float = flag(1e-3, "of --reproduce, relative")

    def __post_init__(self) -> None:
        if self.neighbors < 0:
            raise UserError(f"--neighbors must be at least 1, not {self.neighbors}")


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str], list[str]]:
    parser = make_parser(
        "Evaluate SAMPLES against REFERENCE: each a folder of images, a dataset's YAML, a run, its "
        f"checkpoint, or an .npz of {script('compute_statistics')} (for fid).",
        EvaluationArguments,
    )
    parser.usage = "%(prog)s SAMPLES REFERENCE [flags]"
    add_metric_flags(parser)
    add_flags(parser, FidelityExtractorArguments)
    add_set_flags(parser)
    add_flags(parser, Arguments)
    return parse_sets(parser, with_preset(parser, argv, SCRIPT), most=2)


class Job:
    """What one command line asks for."""

    def __init__(self, argv: Sequence[str] | None) -> None:
        args, self.names, overrides = read_arguments(argv)
        self.argv, self.given = argv, vars(args)
        self.own = from_flags(Arguments, args)
        if self.own.reproduce:
            return
        if not self.names:
            raise UserError("give SAMPLES and REFERENCE: folders of images, runs or configs")
        self.common = from_flags(EvaluationArguments, args)
        self.extractor = from_flags(FidelityExtractorArguments, args)
        self.settings = self.extractor.settings(args, keep_features=self.own.neighbors > 0)
        first = self.settings[0]
        if self.own.sweep and (first.per_class or first.keep_features):
            raise UserError("--sweep goes without --per_class and --neighbors")
        self.swept = parse_sweep(self.own.sweep) if self.own.sweep else None
        start_of_sweep(self.swept or {}, args)
        self.device = device_of_command(self.common.device)
        self.runner = self.common.cache.runner(from_flags(RunSetArguments, args).batch_size)
        sets = self._sets(args, overrides)
        self.samples: ImageSet = sets[0]
        self.reference: ImageSet | None = sets[1] if len(sets) > 1 else None
        if self.swept and not isinstance(self.samples, RunSource):
            raise UserError(f"--sweep makes samples of a run, and {self.names[0]} is none")

    def _sets(self, args: Namespace, overrides: Sequence[str]) -> list[ImageSet]:
        if self.own.reconstruct is None:
            return open_sets(self.names, args, overrides, self.device)
        if len(self.names) < 2:
            raise UserError("--reconstruct takes the images of a REFERENCE's config; give one")
        base, config = from_flags(RunSetArguments, args).base, self.names[1]
        stage = LoadedFirstStage.load(self.names[0], base, overrides)
        args.samples_split = self.own.reconstruct
        sets = [config, config]
        images, reference = open_sets(sets, args, overrides, self.device, runs=[stage.run])
        if not isinstance(images, LoadedSource):
            raise UserError(f"--reconstruct takes the images of a config, and {config} is none")
        dtype = choose_dtype(self.common.precision, self.device)
        return [ReconstructedSource(stage, images, self.device, dtype), reference]

    def parts(self) -> Iterator[Part]:
        """How long it will take, by trials."""
        batch_size = self.runner.batch_size
        if isinstance(self.samples, RunSource):
            yield part_of_sampling(self.samples, batch_size)
        count = extracting([one for pair in self._extractors() for one in pair])
        for role, images in (("samples", self.samples), ("reference", self.reference)):
            if images is not None and not isinstance(images, Statistics | RunSource):
                copies = isinstance(images, ReconstructedSource)
                doing = "reconstructing" if copies else f"extracting the features of the {role}'s"
                yield part_of_pass(doing, images, count, batch_size)

    def _extractors(self) -> list[tuple[Extractor, Extractor]]:
        return self.extractor.extractors(
            self.settings, self.device, self.common.precision, self.common.compile
        )

    def run(self) -> list[Evaluated]:
        """One evaluation, or those of a sweep; none in ranks above 0."""
        extractors = self._extractors()
        evaluator = make_evaluator(self.reference, self.settings, extractors, self.runner)
        self.side_by_side = isinstance(evaluator, SideBySide)
        evaluated: Iterable[tuple[dict[str, Any], Evaluation | None]]
        if self.swept and isinstance(self.samples, RunSource):
            evaluated = list(evaluate_sweep(evaluator, self.samples, self.swept))
        else:
            evaluated = [({}, evaluator(self.samples))]
        self.runner.finish()
        return [(chosen, e) for chosen, e in evaluated if e is not None]

    def result(self, evaluated: Sequence[Evaluated], seconds: float) -> Result:
        _, last = evaluated[-1]
        metrics, sets = last.metrics, last.sets
        if self.swept:
            names = [
                ", ".join(f"{k}={shown(v)}" for k, v in chosen.items()) for chosen, _ in evaluated
            ]
            named = dict(zip(names, [e for _, e in evaluated], strict=True))
            metrics = {name: e.metrics for name, e in named.items()}
            sets = {f"samples {name}": e.sets["samples"] for name, e in named.items()}
            sets |= {role: about for role, about in last.sets.items() if role != "samples"}
        elif last.classes:
            metrics = metrics | {"fid_of_class": last.classes}
        line = command_line(self.argv, SCRIPT)
        return make_result(
            metrics, last.protocol, sets, seconds=seconds, device=self.device, command=line
        )


def write(job: Job, evaluated: Sequence[Evaluated], seconds: float) -> Path:
    """All files of a result; returns the JSON's path."""
    result, (_, evaluation) = job.result(evaluated, seconds), evaluated[-1]
    key = short_hash(result, metrics=list(result["metrics"]))
    path = job.common.folder_for(job.samples) / f"fidelity-{key}.json"
    tables = noted(result, job.own.preset, job.given)
    if job.side_by_side and not job.swept:
        tables.append(by_evaluator(evaluation.metrics))
    if job.swept:
        rows = sweep_rows(evaluated)
        tables.append(markdown_table(rows))
        plotted(plot_sweep, rows, list(job.swept), path.with_suffix(".png"))
    if evaluation.classes:
        ordered = sorted(evaluation.classes.items())
        tables.append(markdown_table([{"class": n, "fid": value} for n, value in ordered]))
        plotted(plot_classes, evaluation.classes, path.with_name(f"{path.stem}-classes.png"))
    write_result(result, path, tables)
    if job.own.neighbors:
        picture_of_neighbors(job, evaluation, path.with_name(f"{path.stem}-neighbours.png"))
    return path


def sweep_rows(evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
    return [row(chosen, evaluation.metrics) for chosen, evaluation in evaluated]


def picture_of_neighbors(job: Job, evaluation: Evaluation, path: Path) -> None:
    assert evaluation.banks is not None and job.reference is not None
    assert not isinstance(job.samples, Statistics) and not isinstance(job.reference, Statistics)
    indices = nearest(*evaluation.banks, ROWS, job.own.neighbors)
    picture = neighbors_picture(job.samples, job.reference, indices)
    with atomic_path(path) as partial:
        picture.save(partial, format="PNG")


def by_evaluator(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a column for every evaluator, whose numbers are not those of the others."""
    columns = {name: dict(flattened(values)) for name, values in metrics.items()}
    names = dict.fromkeys(metric for values in columns.values() for metric in values)
    return markdown_table(
        [
            {"metric": metric, **{name: values.get(metric, "") for name, values in columns.items()}}
            for metric in names
        ]
    )


def printed(job: Job, evaluated: Sequence[Evaluated]) -> str:
    if job.swept:
        return markdown_table(sweep_rows(evaluated))
    metrics = evaluated[0][1].metrics
    return by_evaluator(metrics) if job.side_by_side else summary(metrics)


def summary(metrics: Mapping[str, Any]) -> str:
    numbers = [(k, v) for k, v in flattened(metrics) if not k.startswith("fid_of_class")]
    return ", ".join(f"{name} {value:.5g}" for name, value in numbers)


def reproduce(path: Path, tolerance: float) -> None:
    """Run a result's command again, without any cache, and compare; exit code 1 if it differs."""
    old, start = read_result(path), time.monotonic()
    name, arguments = script_of([*map(str, old["command"])])
    if name != SCRIPT:
        raise UserError(f"{path} is a result of {script(name)}; give it to that script")
    job = Job([*arguments, "--no_cache"])
    evaluated = job.run()
    if not evaluated:
        return
    new = job.result(evaluated, time.monotonic() - start)
    if phrases := differences(old, new, tolerance):
        print(f"{path} is not reproduced: {'; '.join(phrases)}", file=sys.stderr)
        raise SystemExit(1)
    print(f"{path} is reproduced within {tolerance:g}: {summary(new['metrics'])}")


def time_ahead(argv: Sequence[str]) -> Iterator[Part]:
    """How long a command will take, before it starts."""
    return Job(argv).parts()


@command
def main(argv: Sequence[str] | None = None) -> None:
    start, job = time.monotonic(), Job(argv)
    if job.own.reproduce:
        return reproduce(job.own.reproduce, job.own.tolerance)
    check_place(job.common.folder_for(job.samples), "choose another --outdir")
    evaluated = job.run()
    if not evaluated:
        return
    print(printed(job, evaluated))
    path = write(job, evaluated, time.monotonic() - start)
    print(f"{path.name} and {path.with_suffix('.md').name} are in {path.parent}")
    end_with_damaged(job.runner.left_out)


if __name__ == "__main__":
    main()

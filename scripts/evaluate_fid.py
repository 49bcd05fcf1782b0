"""FID, Inception Score, KID, precision and recall of a set of images against another.

    python scripts/evaluate_fid.py SAMPLES REFERENCE --metrics fid,isc,kid,prc

Each is a folder of images, a dataset's config (YAML), a run (its samples are made, and not kept),
or, as reference for FID, an .npz of scripts/compute_statistics.py. The numbers go to a JSON file
that says how they were made, and a table beside it. An interrupted evaluation goes on when the same
command is given again; `torchrun --nproc_per_node 4 scripts/evaluate_fid.py ...` shares the work.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taming.command_line import add_flags, flag, from_flags
from taming.devices import choose_device
from taming.distributed import own_share
from taming.errors import UserError, command
from taming.evaluation import published_numbers as presets
from taming.evaluation.arguments import (
    EvaluationArguments,
    ExtractorArguments,
    RunSetArguments,
    SetArguments,
    add_metric_flags,
    add_set_flags,
    fidelity_settings,
    make_parser,
    parse_sets,
    sampling_plan,
)
from taming.evaluation.cache import key_of
from taming.evaluation.metrics.feature_bank import nearest
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.plots import neighbors_picture, plot_classes, plot_sweep
from taming.evaluation.results import (
    Result,
    command_line,
    differences,
    flattened,
    make_result,
    markdown_table,
    read_result,
    write_result,
)
from taming.evaluation.sources.run import RunSource
from taming.evaluation.tasks.fidelity import Evaluation, FidelityEvaluator, ImageSet
from taming.evaluation.tasks.sweep import evaluate_sweep, parse_sweep, row

SCRIPT = "scripts/evaluate_fid.py"
ROWS = 8  # samples in the picture of neighbors


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script alone."""

    preset: str | None = flag(
        None,
        "the protocol of a published number: "
        + ", ".join(preset.name for preset in presets.PRESETS),
    )
    sweep: str | None = flag(
        None, 'of a run\'s settings, as "top_k=50,100;top_p=0.9,1.0": table and chart'
    )
    neighbors: int = flag(
        0, "picture of the nearest K images", hidden=("--neighbours",), metavar="K"
    )
    reproduce: Path | None = flag(None, "run this result again and compare", metavar="JSON")
    tolerance: float = flag(1e-3, "of --reproduce, relative")

    def __post_init__(self) -> None:
        if self.neighbors < 0:
            raise UserError(f"--neighbors must be at least 1, not {self.neighbors}")


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str], list[str]]:
    parser = make_parser(
        "Evaluate SAMPLES against REFERENCE: each a folder of images, a dataset's YAML, a run, its "
        "checkpoint, or an .npz of scripts/compute_statistics.py (for fid).",
        EvaluationArguments,
    )
    parser.usage = "%(prog)s SAMPLES REFERENCE [flags]"
    add_metric_flags(parser)
    add_flags(parser, ExtractorArguments)
    add_set_flags(parser)
    add_flags(parser, Arguments)
    early, _ = parser.parse_known_args(argv)
    if early.preset:
        parser.set_defaults(**presets.flags(presets.preset(early.preset)))
    return parse_sets(parser, argv, most=2)


class Job:
    """What one command line asks for."""

    def __init__(self, argv: Sequence[str] | None) -> None:
        args, self.names, overrides = read_arguments(argv)
        self.command = command_line(argv, SCRIPT)
        self.own = from_flags(Arguments, args)
        if self.own.reproduce:
            return
        if not self.names:
            raise UserError("give SAMPLES and REFERENCE: folders of images, runs or configs")
        self.common = from_flags(EvaluationArguments, args)
        self.extractor = from_flags(ExtractorArguments, args)
        self.settings = fidelity_settings(
            args, dict(self.extractor.layer), keep_features=self.own.neighbors > 0
        )
        if self.own.sweep and (self.settings.per_class or self.settings.keep_features):
            raise UserError("--sweep goes without --per_class and --neighbors")
        self.swept = parse_sweep(self.own.sweep) if self.own.sweep else None
        self.device = choose_device(self.common.device)
        self.runner = self.common.cache.runner(from_flags(RunSetArguments, args).batch_size)
        plan, workers = sampling_plan(args, overrides, self.device), self.common.cache.workers
        sets = [from_flags(SetArguments, args).open(name, plan, workers) for name in self.names]
        self.samples: ImageSet = sets[0]
        self.reference: ImageSet | None = sets[1] if len(sets) > 1 else None
        if self.swept and not isinstance(self.samples, RunSource):
            raise UserError(f"--sweep makes samples of a run, and {self.names[0]} is none")

    def run(self) -> tuple[Result, list[Evaluation], list[dict[str, Any]]] | None:
        """The result, the evaluations and a sweep's rows; None in ranks above 0."""
        start = time.monotonic()
        extractor, prc_extractor = self.extractor.extractors(
            self.settings, self.device, self.common.precision, self.common.compile
        )
        evaluator = FidelityEvaluator(
            self.reference, extractor, self.settings, prc_extractor, self.runner
        )
        if self.swept and isinstance(self.samples, RunSource):
            evaluated = list(evaluate_sweep(evaluator, self.samples, self.swept))
        else:
            evaluated = [({}, evaluator(self.samples))]
        self.runner.finish()
        pairs = [(chosen, e) for chosen, e in evaluated if e is not None]
        if not pairs:
            return None
        rows = [row(chosen, e.metrics) for chosen, e in pairs] if self.swept else []
        names = [", ".join(f"{k}={v:g}" for k, v in chosen.items()) for chosen, _ in pairs]
        evaluations = [evaluation for _, evaluation in pairs]
        seconds = time.monotonic() - start
        return self._result(dict(zip(names, evaluations, strict=True)), seconds), evaluations, rows

    def _result(self, evaluations: Mapping[str, Evaluation], seconds: float) -> Result:
        last = list(evaluations.values())[-1]
        metrics, sets = last.metrics, last.sets
        if self.swept:
            metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
            sets = {f"samples {name}": e.sets["samples"] for name, e in evaluations.items()}
            sets |= {role: about for role, about in last.sets.items() if role != "samples"}
        elif last.classes:
            metrics = metrics | {"fid_of_class": last.classes}
        return make_result(
            metrics, last.protocol, sets, seconds=seconds, device=self.device, command=self.command
        )

    def outdir(self) -> Path:
        run = self.samples.run.folder if isinstance(self.samples, RunSource) else Path()
        return self.common.outdir or run / "evaluation"


def write(job: Job, result: Result, evaluation: Evaluation, rows: list[dict[str, Any]]) -> Path:
    """All files of a result; returns the JSON's path."""
    key = key_of(protocol=result["protocol"], sets=result["sets"], metrics=list(result["metrics"]))
    path = job.outdir() / f"fidelity-{key[:8]}.json"
    tables = [published(job.own.preset)] if job.own.preset else []
    if job.swept:
        tables.append(markdown_table(rows))
        plot_sweep(rows, list(job.swept), path.with_suffix(".png"))
    if evaluation.classes:
        ordered = sorted(evaluation.classes.items())
        tables.append(markdown_table([{"class": n, "fid": value} for n, value in ordered]))
        plot_classes(evaluation.classes, path.with_name(f"{path.stem}-classes.png"))
    write_result(result, path, tables)
    if job.own.neighbors:
        picture_of_neighbors(job, evaluation, path.with_name(f"{path.stem}-neighbours.png"))
    return path


def published(name: str) -> str:
    preset = presets.preset(name)
    numbers = ", ".join(f"{metric} {number:g}" for metric, number in preset.published)
    settings = ", ".join(f"{key}: {value}" for key, value in preset.settings().items())
    return f"Published ({preset.what}): {numbers}. Sampler: {settings}."


def picture_of_neighbors(job: Job, evaluation: Evaluation, path: Path) -> None:
    assert evaluation.banks is not None and job.reference is not None
    assert not isinstance(job.samples, Statistics) and not isinstance(job.reference, Statistics)
    indices = nearest(*evaluation.banks, ROWS, job.own.neighbors)
    neighbors_picture(job.samples, job.reference, indices).save(path)


def summary(result: Result) -> str:
    numbers = [(k, v) for k, v in flattened(result["metrics"]) if not k.startswith("fid_of_class")]
    return ", ".join(f"{name} {value:.5g}" for name, value in numbers)


def reproduce(path: Path, tolerance: float) -> None:
    """Run a result's command again, without any cache, and compare; exit code 1 if it differs."""
    old = read_result(path)
    script, *arguments = map(str, old["command"])
    if Path(script).name != Path(SCRIPT).name:
        raise UserError(f"{path} is a result of {script}; give it to that script")
    finished = Job([*arguments, "--no_cache"]).run()
    if finished is None:
        return
    new = finished[0]
    if phrases := differences(old, new, tolerance):
        print(f"{path} is not reproduced: {'; '.join(phrases)}", file=sys.stderr)
        raise SystemExit(1)
    print(f"{path} is reproduced within {tolerance:g}: {summary(new)}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    job = Job(argv)
    if job.own.reproduce:
        return reproduce(job.own.reproduce, job.own.tolerance)
    finished = job.run()
    if finished is None or own_share()[0] > 0:
        return
    result, evaluations, rows = finished
    path = write(job, result, evaluations[-1], rows)
    if job.own.preset:
        print(published(job.own.preset))
    print(markdown_table(rows) if job.swept else summary(result))
    print(f"{path.name} and {path.with_suffix('.md').name} are in {path.parent}")


if __name__ == "__main__":
    main()

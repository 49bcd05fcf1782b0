"""FID, Inception Score, KID, precision and recall of a set of images against another.

    python scripts/evaluate_fid.py SAMPLES REFERENCE --metrics fid,isc,kid,prc

Each is a folder of images, a dataset's config (YAML), a run (its samples are drawn, and not kept),
or, as reference for FID, an .npz of scripts/compute_statistics.py. The numbers go to a JSON file
that says how they were made, and a table beside it. An interrupted evaluation goes on when the same
command is given again; `torchrun --nproc_per_node 4 scripts/evaluate_fid.py ...` shares the work.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taming.devices import choose_device
from taming.distributed import own_share
from taming.errors import UserError, command
from taming.evaluation import published_numbers as presets
from taming.evaluation.arguments import (
    add_extractor,
    add_metrics,
    add_sources,
    drawing_from,
    extractors_from,
    make_parser,
    parse_sets,
    protocol_from,
    reading_from,
    source_for,
)
from taming.evaluation.cache import key_of
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.plots import nearest, neighbours_picture, plot_classes, plot_sweep
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
ROWS = 8  # samples in the picture of neighbours


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str], list[str]]:
    parser = make_parser(
        "Evaluate SAMPLES against REFERENCE: each a folder of images, a dataset's YAML, a run, its "
        "checkpoint, or an .npz of scripts/compute_statistics.py (for fid)."
    )
    parser.usage = "%(prog)s SAMPLES REFERENCE [flags]"
    add_metrics(parser)
    add_extractor(parser)
    add_sources(parser)
    names = ", ".join(preset.name for preset in presets.PRESETS)
    parser.add_argument("--preset", help=f"the protocol of a published number: {names}")
    parser.add_argument(
        "--sweep", help='of a run\'s settings, as "top_k=50,100;top_p=0.9,1.0": table and chart'
    )
    parser.add_argument(
        "--neighbours", type=int, default=0, metavar="K", help="picture of the nearest K images"
    )
    parser.add_argument(
        "--reproduce", type=Path, metavar="JSON", help="run this result again and compare"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="of --reproduce, relative (default 0.001)"
    )
    early, _ = parser.parse_known_args(argv)
    if early.preset:
        parser.set_defaults(**presets.flags(presets.preset(early.preset)))
    return parse_sets(parser, argv, most=2)


def check(args: Namespace, sets: Sequence[str]) -> None:
    if not sets:
        raise UserError("give SAMPLES and REFERENCE: folders of images, runs or configs")
    if args.sweep and (args.per_class or args.neighbours):
        raise UserError("--sweep goes without --per_class and --neighbours")
    if args.neighbours < 0:
        raise UserError(f"--neighbours must be at least 1, not {args.neighbours}")


class Job:
    """What one command line asks for."""

    def __init__(self, argv: Sequence[str] | None) -> None:
        self.args, self.names, overrides = read_arguments(argv)
        self.command = command_line(argv, SCRIPT)
        if self.args.reproduce:
            return
        args = self.args
        check(args, self.names)
        self.swept = parse_sweep(args.sweep) if args.sweep else None
        self.device = choose_device(args.device)
        drawing = drawing_from(args, overrides, self.device)
        options = (drawing, args.split, args.image_key, args.deep, args.workers)
        self.protocol = protocol_from(args, banks=bool(args.neighbours))
        sets = [source_for(name, *options) for name in self.names]
        self.samples: ImageSet = sets[0]
        self.reference: ImageSet | None = sets[1] if len(sets) > 1 else None
        if self.swept and not isinstance(self.samples, RunSource):
            raise UserError(f"--sweep draws samples of a run, and {self.names[0]} is none")

    def run(self) -> tuple[Result, list[Evaluation], list[dict[str, Any]]] | None:
        """The result, the evaluations and the sweep's rows; None in ranks above 0."""
        start = time.monotonic()
        extractors = extractors_from(self.args, self.protocol, self.device)
        reading = reading_from(self.args)
        evaluator = FidelityEvaluator(
            self.reference, extractors[0], self.protocol, extractors[1], reading
        )
        if self.swept and isinstance(self.samples, RunSource):
            found = list(evaluate_sweep(evaluator, self.samples, self.swept))
        else:
            found = [({}, evaluator(self.samples))]
        reading.finish()
        evaluations = [evaluation for _, evaluation in found if evaluation is not None]
        if not evaluations:
            return None
        rows = [row(chosen, e.metrics) for (chosen, _), e in zip(found, evaluations, strict=True)]
        return self._result(evaluations, found, time.monotonic() - start), evaluations, rows

    def _result(self, evaluations: list[Evaluation], found: list[Any], seconds: float) -> Result:
        last = evaluations[-1]
        metrics, sets = last.metrics, last.sets
        if self.swept:
            names = [", ".join(f"{k}={v:g}" for k, v in chosen.items()) for chosen, _ in found]
            named = dict(zip(names, evaluations, strict=True))
            metrics = {name: evaluation.metrics for name, evaluation in named.items()}
            sets = {f"samples {name}": e.sets["samples"] for name, e in named.items()}
            sets |= {role: about for role, about in last.sets.items() if role != "samples"}
        elif last.classes:
            metrics = metrics | {"fid_of_class": last.classes}
        return make_result(metrics, last.protocol, sets, seconds, self.device, self.command)

    def outdir(self) -> Path:
        if self.args.outdir:
            return self.args.outdir
        run = self.samples.run.folder if isinstance(self.samples, RunSource) else Path()
        return run / "evaluation"


def write(job: Job, result: Result, evaluation: Evaluation, rows: list[dict[str, Any]]) -> Path:
    """All files of a result; returns the JSON's path."""
    key = key_of(protocol=result["protocol"], sets=result["sets"], metrics=list(result["metrics"]))
    path = job.outdir() / f"fidelity-{key[:8]}.json"
    tables = [published(job.args.preset)] if job.args.preset else []
    if job.swept:
        tables.append(markdown_table(rows))
        plot_sweep(rows, list(job.swept), path.with_suffix(".png"))
    if evaluation.classes:
        ordered = sorted(evaluation.classes.items())
        tables.append(markdown_table([{"class": n, "fid": value} for n, value in ordered]))
        plot_classes(evaluation.classes, path.with_name(f"{path.stem}-classes.png"))
    write_result(result, path, tables)
    if job.args.neighbours:
        picture_of_neighbours(job, evaluation, path.with_name(f"{path.stem}-neighbours.png"))
    return path


def published(name: str) -> str:
    preset = presets.preset(name)
    numbers = ", ".join(f"{metric} {number:g}" for metric, number in preset.published)
    settings = ", ".join(f"{key}: {value}" for key, value in preset.settings().items())
    return f"Published ({preset.what}): {numbers}. Sampler: {settings}."


def picture_of_neighbours(job: Job, evaluation: Evaluation, path: Path) -> None:
    assert evaluation.banks is not None and job.reference is not None
    assert not isinstance(job.samples, Statistics) and not isinstance(job.reference, Statistics)
    found = nearest(*evaluation.banks, ROWS, job.args.neighbours)
    neighbours_picture(job.samples, job.reference, found).save(path)


def summary(result: Result) -> str:
    numbers = [(k, v) for k, v in flattened(result["metrics"]) if not k.startswith("fid_of_class")]
    return ", ".join(f"{name} {value:.5g}" for name, value in numbers)


def reproduce(path: Path, tolerance: float) -> None:
    """Run a result's command again, without any cache, and compare; exit code 1 if it differs."""
    old = read_result(path)
    script, *arguments = map(str, old["command"])
    if Path(script).name != Path(SCRIPT).name:
        raise UserError(f"{path} is a result of {script}; give it to that script")
    found = Job([*arguments, "--no_cache"]).run()
    if found is None:
        return
    new = found[0]
    if phrases := differences(old, new, tolerance):
        print(f"{path} is not reproduced: {'; '.join(phrases)}", file=sys.stderr)
        raise SystemExit(1)
    print(f"{path} is reproduced within {tolerance:g}: {summary(new)}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    job = Job(argv)
    if job.args.reproduce:
        return reproduce(job.args.reproduce, job.args.tolerance)
    found = job.run()
    if found is None or own_share()[0] > 0:
        return
    result, evaluations, rows = found
    path = write(job, result, evaluations[-1], rows)
    if job.args.preset:
        print(published(job.args.preset))
    print(markdown_table(rows) if job.swept else summary(result))
    print(f"{path.name} and {path.with_suffix('.md').name} are in {path.parent}")


if __name__ == "__main__":
    main()

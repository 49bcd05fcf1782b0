"""The figures of the paper (arXiv 2012.09841) for runs of one's own.

    python scripts/figures.py neighbors SAMPLES TRAINING_SET
    python scripts/figures.py likelihood -r logs/<run> -r logs/<run>
    python scripts/figures.py orders -r logs/<run> -r logs/<run>
    python scripts/figures.py cost [-r logs/<run> -r logs/<run>]
    python scripts/figures.py sizes -r logs/<run>

Each writes a picture, a JSON file that says how it was made, and its table in Markdown, to --outdir
(by default `figures` in the first run, or here). `python scripts/figures.py NAME --help` lists a
figure's flags. FID over sampler settings is `scripts/evaluate_fid.py --sweep`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from taming.checkpoint import Run
from taming.command_line import Parser, flag, from_flags, parse
from taming.config import did_you_mean
from taming.devices import device_of_command, own_share
from taming.errors import UserError, command
from taming.evaluation.figures.arguments import (
    DrawingArguments,
    FigureFiles,
    RunsArguments,
    described_run,
    figure_parser,
    save_page,
)
from taming.evaluation.figures.commands import draw_cost, draw_sizes
from taming.evaluation.figures.loss_curves import LossCurve, compared, loss_rows, plot_losses
from taming.evaluation.figures.neighbor_command import draw_neighbors
from taming.evaluation.figures.samples import first_requests, order_picture
from taming.evaluation.metrics.likelihood import LikelihoodScores
from taming.evaluation.tasks.likelihood import LikelihoodArguments, MeasuredLikelihood, measure_run
from taming.figures import require_matplotlib
from taming.pictures import Cell, grid
from taming.sampling.arguments import require_positive
from taming.sampling.plan import TOP_K
from taming.training.logged_rows import read_values
from taming.training.logged_times import read_seconds

log = logging.getLogger(__name__)

LOSS = "val/loss"  # of transformers: nats per token of the validation data


def curve_of(name: str, run: Run, value: str) -> LossCurve | None:
    """What a run has logged of a value; None if it has logged nothing of it."""
    points = read_values(run.folder / "csv").get(value)
    if not points:
        return None
    by_step = dict(points)
    seconds = read_seconds(run.folder / "tensorboard", value)
    known = [step in seconds for step in by_step]
    times = [seconds[step] for step in by_step] if all(known) else None
    return LossCurve(name, list(by_step), list(by_step.values()), times)


def curves_of(runs: Mapping[str, Run], value: str, required: bool = True) -> list[LossCurve]:
    """Of all runs. If one has none: none at all, with a warning; UserError if they are required."""
    curves = []
    for name, run in runs.items():
        curve = curve_of(name, run, value)
        if curve is None:
            reason = f"{run.folder} has logged no {value} (csv/*/metrics.csv) yet"
            if required:
                raise UserError(reason)
            log.warning("%s: the curves are left out", reason)
            return []
        curves.append(curve)
    return curves


# ---------------------------------------------------------------------- likelihoods


@dataclass(frozen=True, kw_only=True)
class LikelihoodFigure:
    """Flags of `likelihood`."""

    runs: RunsArguments
    data: LikelihoodArguments
    value: str = flag(LOSS, "the logged value whose curves are drawn")
    logs_only: bool = flag(False, "compare what was logged, and evaluate no checkpoint")


def score_columns(scores: LikelihoodScores | None) -> dict[str, Any]:
    """Of the evaluated checkpoint; nothing with --logs_only."""
    if scores is None:
        return {}
    return {
        "nats per token": f"{scores.nats_per_token:.4f}",
        "nats per dim": f"{scores.nats_per_dimension:.5f}",
        "bits per dim": f"{scores.bits_per_dimension:.5f}",
        "likeliest right": f"{scores.top_1:.2%}",
    }


def draw_likelihood(argv: Sequence[str]) -> None:
    """Draw what `likelihood` is asked for."""
    files = FigureFiles("likelihood", argv)
    parser = figure_parser(
        "likelihood", "Likelihoods of several transformers, and their curves.", LikelihoodFigure
    )
    args, overrides = parse(parser, argv)
    own = from_flags(LikelihoodFigure, args)
    runs = own.runs.runs()
    if not runs:
        raise UserError("--resume names the runs; give at least one")
    curves = curves_of(runs, own.value, required=own.logs_only)
    if curves:
        require_matplotlib()
    measured = {} if own.logs_only else measure_runs(own, runs, overrides)
    if own_share()[0] > 0:
        return
    scores = {name: one.likelihood.compute() for name, one in measured.items()}
    logged = {row["run"]: row for row in loss_rows(curves)} if curves else {}
    data = data_columns(measured)
    rows = [
        {"run": name} | data.get(name, {}) | score_columns(scores.get(name)) | logged.get(name, {})
        for name in runs
    ]
    folder = own.runs.figure.folder_for(next(iter(runs.values())).folder)
    metrics: dict[str, dict[str, Any]] = {name: asdict(one) for name, one in scores.items()}
    if curves:
        plot_losses(curves, files.picture(folder), own.value)
        metrics["logged"] = compared(curves)
    files.write(
        folder,
        rows,
        metrics,
        protocol={"logged": own.value} | {name: one.protocol for name, one in measured.items()},
        sets={name: one.images for name, one in measured.items()},
        device=device_of_command(own.runs.figure.device),
    )


def data_columns(measured: Mapping[str, MeasuredLikelihood]) -> dict[str, dict[str, str]]:
    """By run, the beginning of the hash of its items, if they are not the same for all."""
    hashes = {name: str(one.images["fingerprint"])[:8] for name, one in measured.items()}
    if len(set(hashes.values())) < 2:
        return {}
    log.warning("the runs were evaluated on different items; --data YAML gives all the same")
    return {name: {"data": value} for name, value in hashes.items()}


def measure_runs(
    own: LikelihoodFigure, runs: Mapping[str, Run], overrides: Sequence[str]
) -> dict[str, MeasuredLikelihood]:
    """By name; none in processes other than that of rank 0."""
    measured = {
        name: measure_run(own.runs.of(run, overrides), own.data) for name, run in runs.items()
    }
    return {name: one for name, one in measured.items() if one is not None}


# ---------------------------------------------------------------------- orders


@dataclass(frozen=True, kw_only=True)
class OrdersFigure:
    """Flags of `orders`."""

    runs: RunsArguments
    sampling: DrawingArguments
    value: str = flag(LOSS, "the logged value whose curves are drawn")
    samples: int = flag(6, "per run, with the same seeds")
    label: int | None = flag(None, "the class, for models of classes (default: the first)")

    def __post_init__(self) -> None:
        require_positive(samples=self.samples)

    def row_of(self, run: Run, overrides: Sequence[str]) -> tuple[str, list[Cell], dict[str, Any]]:
        """The order's name; a picture of the order, and samples; and what run they are of."""
        model, _, step, _ = self.runs.of(run, overrides).load()
        requests = first_requests(model, self.samples, self.label)
        images = self.sampling.drawing().images(model, requests)
        cells: list[Cell] = [order_picture(model, self.sampling.seed), None, *images]
        return model.order_name, cells, described_run(run, step)


def draw_orders(argv: Sequence[str]) -> None:
    """Draw what `orders` is asked for."""
    files = FigureFiles("orders", argv)
    parser = figure_parser(
        "orders", "Runs that predict in different orders.", OrdersFigure, top_k=TOP_K
    )
    args, overrides = parse(parser, argv)
    own = from_flags(OrdersFigure, args)
    runs = own.runs.runs()
    if not runs:
        raise UserError("--resume names the runs; give one per order")
    curves = curves_of(runs, own.value)
    require_matplotlib()
    rows_of_picture, named, sets = [], [], {}
    for curve, (name, run) in zip(curves, runs.items(), strict=True):
        order, (picture, gap, *samples), sets[name] = own.row_of(run, overrides)
        rows_of_picture.append([(order, picture), gap, *samples])
        named.append(replace(curve, name=f"{order}: {curve.name}"))
    folder = own.runs.figure.folder_for(next(iter(runs.values())).folder)
    plot_losses(named, files.picture(folder), own.value)
    page = grid(rows_of_picture, {0: "order", 2: "samples"}, side=128)
    save_page(page, files.picture(folder, "-samples"))
    rows = loss_rows(named)
    files.write(
        folder,
        rows,
        compared(named),
        protocol={"logged": own.value, "label": own.label, "seed": own.sampling.seed}
        | asdict(own.sampling.settings),
        sets=sets,
        device=device_of_command(own.runs.figure.device),
    )


FIGURES: dict[str, Callable[[Sequence[str]], None]] = {
    "neighbors": draw_neighbors,
    "likelihood": draw_likelihood,
    "orders": draw_orders,
    "cost": draw_cost,
    "sizes": draw_sizes,
}


@command
def main(argv: Sequence[str] | None = None) -> None:
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        parser = Parser(description=__doc__)
        parser.add_argument("figure", choices=[*FIGURES])
        showing: list[Callable[[Sequence[str]], object]] = [parser.parse_args, *FIGURES.values()]
        for show in showing:
            with suppress(SystemExit):
                show(["--help"])
        raise SystemExit(0)
    if name not in FIGURES:
        hint = did_you_mean(name, FIGURES)
        raise UserError(f"there is no figure '{name}'{hint}; there are {', '.join(FIGURES)}")
    FIGURES[name](rest)


if __name__ == "__main__":
    main()

"""How well a transformer predicts the codes of a dataset: likelihood, by class and by position.

    python scripts/evaluate_transformer.py -r logs/<run>

Bits and nats per token and per value of the image, the share of tokens that were the likeliest,
a table of the classes, and maps of where in the image codes are hard to predict. The data are the
run's validation data, or those of --split, --data and of `key.path=value` overrides. JSON, Markdown
and plots go to `<run>/evaluation/`. An interrupted evaluation goes on when the same command is
given again; `torchrun --nproc_per_node 4 scripts/evaluate_transformer.py ...` shares the work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taming.atomic_files import check_place
from taming.checkpoint import find_run
from taming.command_line import flag, from_flags, parse
from taming.errors import command, end_with_damaged
from taming.evaluation.metrics.likelihood import Likelihood
from taming.evaluation.plots import plot_bars, plot_map, plotted
from taming.evaluation.presets import PRESET_HELP, noted, with_preset
from taming.evaluation.results import (
    command_line,
    make_result,
    markdown_table,
    short_hash,
    write_result,
)
from taming.evaluation.tasks.likelihood import LikelihoodArguments, measure_run, time_of_run
from taming.evaluation.tasks.time_ahead import Part
from taming.sampling.arguments import RunArguments, make_parser

SCRIPT = "evaluate_transformer"


@dataclass(frozen=True, kw_only=True)
class Arguments(LikelihoodArguments):
    """The flags of this script, beside those of the run."""

    preset: str | None = flag(None, PRESET_HELP)


def write(
    result: dict[str, Any], likelihood: Likelihood, outdir: Path, ends: Sequence[str] = ()
) -> Path:
    """All files of a result; returns the JSON's path."""
    path, classes = outdir / f"transformer-{short_hash(result)}.json", likelihood.by_class()
    maps, bars = (path.with_name(f"{path.stem}-{what}.png") for what in ("positions", "classes"))
    images = plotted(plot_map, likelihood.map(), maps, "nats per token")
    tables = []
    if classes:
        tables = [markdown_table([{"class": label} | row for label, row in classes.items()])]
        nats = {label: row["nats_per_token"] for label, row in classes.items()}
        images += plotted(plot_bars, nats, bars, "nats per token")
    tables += [f"![{image.stem}]({image.name})" for image in images]
    return write_result(result, path, [*tables, *ends])


def read_arguments(argv: Sequence[str] | None) -> tuple[RunArguments, Arguments, dict[str, Any]]:
    """The run's flags, the others, and all of them by name."""
    parser = make_parser("Evaluate a transformer's likelihood.", Arguments)
    args, overrides = parse(parser, with_preset(parser, argv, SCRIPT))
    arguments = from_flags(RunArguments, args, overrides=tuple(overrides))
    return arguments, from_flags(Arguments, args), vars(args)


def time_ahead(argv: Sequence[str]) -> Iterator[Part]:
    """How long a command will take, before it starts."""
    arguments, own, _ = read_arguments(argv)
    yield time_of_run(arguments, own)


@command
def main(argv: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    arguments, own, given = read_arguments(argv)
    outdir = Path(arguments.outdir or find_run(arguments.resume).folder / "evaluation")
    check_place(outdir, "choose another --outdir")
    measured = measure_run(arguments, own)
    if measured is None:
        return
    likelihood = measured.likelihood
    scores = asdict(likelihood.compute())
    result = make_result(
        scores,
        measured.protocol,
        {"images": measured.images},
        seconds=time.monotonic() - start,
        device=measured.device,
        command=command_line(argv, SCRIPT),
    )
    result["by_class"] = likelihood.by_class()
    tables = noted(result, own.preset, given)
    result["by_position"] = likelihood.map().tolist()
    path = write(result, likelihood, outdir, tables)
    print_scores(scores)
    print(
        f"step {measured.step}; {path.name}, {path.with_suffix('.md').name} and plots are in "
        f"{path.parent}"
    )
    end_with_damaged(measured.left_out)


def print_scores(scores: dict[str, Any]) -> None:
    print(
        f"{scores['nats_per_token']:.4f} nats per token, {scores['bits_per_token']:.4f} bits "
        f"(uniform: {scores['uniform_nats_per_token']:.4f} nats)"
    )
    print(
        f"{scores['nats_per_dimension']:.5f} nats per dimension, "
        f"{scores['bits_per_dimension']:.5f} bits, of {scores['images']} images"
    )
    print(f"likeliest token right: {scores['top_1']:.2%}")


if __name__ == "__main__":
    main()

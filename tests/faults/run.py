"""Injects faults at random and prints tables in Markdown.

`make faults`, or with flags:

    python tests/faults/run.py --only kills --seed 3 --kills 50 --out tables.md

Exits with 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults import measures
from tests.faults.kills import Injection, Outcome, random_kills
from tests.kit.launch import Launcher


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=list(PARTS), nargs="+", default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=50, help="number of kills")
    parser.add_argument("--damages", type=int, default=1000, help="number of damaged checkpoints")
    parser.add_argument("--cases", type=int, default=10_000, help="number of made-up inputs")
    parser.add_argument("--examples", type=Path, help="write inputs that fail to this file")
    parser.add_argument("--baseline", type=Path, help="a checkout whose steps are timed as well")
    parser.add_argument("--out", type=Path, help="append the tables to this file as well")
    parser.add_argument("--write", type=Path, help="put the tables between this file's markers")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    return parser.parse_args(argv)


def kills(args: argparse.Namespace, folder: Path) -> tuple[list[str], bool]:
    """Kills of training runs: a row each, and what they come to."""
    outcomes = []
    with Launcher() as launcher:
        injection = Injection(launcher, folder)
        for number, kill in enumerate(random_kills(args.seed, args.kills)):
            outcome = injection.inflict(kill, keep=args.keep)
            outcomes.append(outcome)
            word = "; ".join(outcome.problems) or "equal"
            print(f"{number + 1}/{args.kills} {kill}: {word}", file=sys.stderr, flush=True)
    rows = [
        "| no. | run | moment | fault | exit | batches done, saved, repeated | what is not right |",
        "|---|---|---|---|---|---|---|",
        *(_row(number + 1, outcome) for number, outcome in enumerate(outcomes)),
    ]
    return [*_summary(outcomes), "", *rows], not any(outcome.problems for outcome in outcomes)


def _row(number: int, outcome: Outcome) -> str:
    kill = outcome.kill
    counts = f"{outcome.died_at}, {outcome.saved_at}, {outcome.lost if outcome.resumes else '-'}"
    faults = ", then ".join(map(str, kill.faults))
    problems = "<br>".join(problem.replace("|", "/") for problem in outcome.problems) or "none"
    cells = (number, kill.case, kill.kind, faults, outcome.first.code, counts, problems)
    return f"| {' | '.join(map(str, cells))} |"


def _summary(outcomes: list[Outcome]) -> list[str]:
    """Lines of a table: how many kills came out well in which respect."""
    total = len(outcomes)
    resumed = [one for one in outcomes if one.resumes]
    lost = [one.lost for one in resumed]
    goes_on = sum(all(end.code == 0 for end in one.resumes) for one in outcomes)
    figures = {
        "kills": total,
        "ended bit-identical, nothing else amiss": sum(not one.problems for one in outcomes),
        "could be resumed": goes_on,
        "weights and optimizers bit-identical": sum(_same_weights(one) for one in outcomes),
        "table of logged values right": sum(_without(one, "table:") for one in outcomes),
        "images right": sum(_without(one, "images:") for one in outcomes),
        "exit code right": sum(_without(one, "exit code", "hung") for one in outcomes),
        "no temporary files left": sum(_without(one, "left behind") for one in outcomes),
        "batches never trained": sum(not _without(one, "never trained") for one in outcomes),
        "batches repeated, at most": max(lost, default=0),
    }
    return [
        "| kills | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in figures.items()),
    ]


def _without(outcome: Outcome, *words: str) -> bool:
    return not any(word in problem for problem in outcome.problems for word in words)


def _same_weights(outcome: Outcome) -> bool:
    finished = all(end.code == 0 for end in outcome.resumes)
    return finished and _without(outcome, ".ckpt", "checkpoints:", "no run")


PARTS: dict[str, Callable[[argparse.Namespace, Path], tuple[list[str], bool]]] = {
    "kills": kills,
    "damage": measures.damage,
    "disk": measures.disk,
    "ranks": measures.ranks,
    "hostile": measures.hostile,
    "fuzz": measures.fuzz,
    "cost": measures.cost,
}


MARKERS = "<!-- tables of tests/faults/run.py -->", "<!-- end of tables -->"


def put_between_markers(path: Path, tables: str) -> None:
    """Replace what stands between the markers of a file."""
    start, end = MARKERS
    before, _, rest = path.read_text().partition(start)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{start}\n\n{tables}\n{end}{after}")


def main(argv: list[str] | None = None) -> int:
    """Run the parts and print their tables."""
    args = parse(argv)
    good, tables = True, ""
    for name in args.only:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            lines, passed = PARTS[name](args, Path(folder))
        good &= passed
        seconds = time.monotonic() - start
        text = "\n".join([f"## {name} (seed {args.seed}, {seconds:.0f} s)", "", *lines, ""])
        tables += text + "\n"
        print(text, flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(text + "\n")
    if args.write:
        put_between_markers(args.write, tables.rstrip() + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())

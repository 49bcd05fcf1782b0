"""Measure published numbers again, each by the command and the protocol that its preset names.

    python scripts/reproduce.py --list
    python scripts/reproduce.py cin_k250 ffhq
    python scripts/reproduce.py --all -- --device cuda --precision bf16

What follows -- goes to the evaluation scripts. No model or dataset is downloaded: what is missing
is named, with the command that fetches it. Results stay in `reproduced/<preset>-<key>/`, so that
the same command goes on with the rest, and `reproduced/reproduced.{md,json}` compares the published
numbers with the measured ones.
`torchrun --standalone --nproc_per_node 4 scripts/reproduce.py ...` shares each preset's work.
"""

from __future__ import annotations

import io
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taming.atomic_files import check_place
from taming.command_line import Parser, add_flags, flag, from_flags
from taming.devices import own_share
from taming.distributed import gather_objects
from taming.errors import DamagedImage, UserError, command, sentence
from taming.evaluation.presets import PRESETS, RENAMED, Preset, preset
from taming.evaluation.presets.listing import listing
from taming.evaluation.tasks.reproduction import (
    Reproduction,
    left_out_of,
    result_in,
    rows,
    write_table,
)
from taming.evaluation.tasks.time_ahead import Part
from taming.limits import readable_time
from taming.program import load
from taming.shipped import runnable, script_of


def parse_pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise UserError(f"give NAME=PATH, not '{text}'")
    name = RENAMED.get(name, name)
    if name not in {word for entry in PRESETS.values() for word in (entry.name, entry.model)}:
        raise UserError(f"there is no preset or published model '{name}'; --list shows them")
    return name, path


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script."""

    list: bool = flag(False, "show the presets, and their commands, and stop")
    all: bool = flag(False, "measure all that a script measures, and show the others beside them")
    model: tuple[tuple[str, str], ...] = flag(
        (),
        "where the model of a preset is (default: logs/...)",
        metavar="NAME=RUN",
        parse=parse_pair,
        repeated=True,
    )
    data: tuple[tuple[str, str], ...] = flag(
        (),
        "other data for a preset than those of its YAML in configs/",
        metavar="NAME=YAML",
        parse=parse_pair,
        repeated=True,
    )
    outdir: Path = flag(Path("reproduced"), "where results go", "-o")


def read_arguments(argv: Sequence[str] | None) -> tuple[Arguments, list[str], tuple[str, ...]]:
    """The flags, the presets' names, and what goes to the evaluation scripts."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = Parser(description="Measure published numbers again.", usage="%(prog)s [NAME ...]")
    add_flags(parser, Arguments)
    parser.add_argument("names", nargs="*", help="presets, see --list")
    args = parser.parse_intermixed_args(words[:cut])
    return from_flags(Arguments, args), args.names, tuple(words[cut + 1 :])


def chosen_presets(own: Arguments, names: Sequence[str]) -> list[Preset]:
    if own.all == bool(names):
        raise UserError("name presets, or give --all; --list shows them")
    named = dict.fromkeys(map(preset, names))  # each once, whatever its names
    return list(named or PRESETS.values())


def reproductions(
    own: Arguments, presets: Sequence[Preset], extra: tuple[str, ...]
) -> Iterator[Reproduction]:
    runs, data = dict(own.model), dict(own.data)
    for entry in presets:
        named = [name for name in (entry.name, entry.model) if name is not None]
        run, config = (
            next((there[name] for name in named if name in there), None) for there in (runs, data)
        )
        yield Reproduction(entry, run, config, extra)


def say(text: str) -> None:
    if own_share()[0] == 0:
        print(text, flush=True)


@contextmanager
def without_words() -> Iterator[None]:
    """Nothing is said that the evaluation will say as well."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def announce_time(script: Any, words: Sequence[str]) -> None:
    """Say how long the parts of an evaluation will take, and all of it."""
    parts: list[Part] = []
    try:
        with without_words():
            parts.extend(script.time_ahead(words))
    except DamagedImage as error:  # which the evaluation may leave out
        say(f"how long it takes is not known: {sentence(error)}")
    for part in parts:
        say(str(part))
    if len(parts) > 1:
        total = readable_time(sum(part.seconds for part in parts))
        say(f"in all, about {total}, less what an earlier evaluation has left in the cache")


def measure(one: Reproduction, folder: Path) -> str:
    """Run the command of a preset in this process; what went wrong, or nothing."""
    line = [*one.command(), "-o", str(folder)]
    name, words = script_of(line)
    script = load(Path(__file__).with_name(f"{name}.py"))
    say(f"{one.preset.name}: {shlex.join(runnable(line))}")
    try:
        announce_time(script, words)
        script.main(words)
    except UserError as error:
        return str(error)
    except SystemExit as stop:  # the script has said why
        code = stop.code if isinstance(stop.code, int) else 1
        if code > 2:  # interrupted
            raise
        return "" if code < 2 else "failed"
    return ""


@dataclass(frozen=True)
class Outcome:
    """Lines of the final table, and whether they have all numbers that they could have."""

    lines: list[dict[str, Any]]
    complete: bool


def reproduce(one: Reproduction, outdir: Path) -> Outcome:
    """The lines of a preset in the final table, which matter in the first process."""
    if missing := list(one.missing()):
        for text in missing:
            say(f"{one.preset.name} cannot be measured: {text}")
        why = "missing: model or data" if one.preset.script else f"no single run: {one.preset.note}"
        return Outcome(rows(one.preset, None, why), False)
    folder = one.folder(outdir)
    # The first process decides for all, as it is the one that writes results.
    result = result_in(folder)
    finished = gather_objects(result is not None and not left_out_of(one.preset, result))[0]
    problem = "" if finished else measure(one, folder)
    problem = problem or left_out_of(one.preset, result_in(folder))
    if finished:
        say(f"{one.preset.name} is in {folder}")
    if problem:
        say(f"{one.preset.name} could not be measured: {problem}")
    lines = rows(one.preset, result_in(folder), problem)
    return Outcome(lines, not problem and has_all_numbers(one.preset, lines))


def has_all_numbers(entry: Preset, lines: Sequence[dict[str, Any]]) -> bool:
    """Whether every number of the preset's model was measured, however many are published."""
    of_others = {place for place, number in enumerate(entry.numbers) if number.of}
    own = [line["measured"] for place, line in enumerate(lines) if place not in of_others]
    return all(isinstance(number, float) for number in own)


@command
def main(argv: Sequence[str] | None = None) -> None:
    own, names, extra = read_arguments(argv)
    if own.list:
        if names:
            raise UserError(f"--list shows all presets; leave {names[0]} or --list out")
        return say(listing())
    presets = chosen_presets(own, names)
    check_place(own.outdir, "choose another --outdir")
    outcomes = [reproduce(one, own.outdir) for one in reproductions(own, presets, extra)]
    if own_share()[0] > 0:
        return
    print(write_table([line for one in outcomes for line in one.lines], own.outdir))
    print(f"reproduced.md and reproduced.json are in {own.outdir}")
    # Of --all, those count that a script measures; of those that are named, each.
    counted = [
        one.complete
        for one, entry in zip(outcomes, presets, strict=True)
        if names or entry.script is not None
    ]
    if lost := counted.count(False):
        print(f"error: {lost} of {len(counted)} presets were not measured", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()

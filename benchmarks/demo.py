"""The numbers of `make demo` over several seeds: README.md's table gives their range.

    python benchmarks/demo.py --seeds 0,1,2,3,4,23
    python benchmarks/demo.py --table

Each seed trains both stages, samples and reports, in four to ten minutes on two cores. Numbers go
to results/demo-cpu.json after each, beside those of other seeds and versions of torch; what is
there is not computed again. `--table` prints the table of README.md, whose ranges hold all of them.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS

from taming.atomic_files import write_text
from taming.command_line import Parser, add_flags, flag, from_flags, parse_numbers
from taming.devices import processor_name
from taming.errors import command

ROOT = Path(__file__).parent.parent
PATH = RESULTS / "demo-cpu.json"


@dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = flag((0, 1, 2, 3, 4), "of both stages", parse=parse_numbers)
    steps: int = flag(-1, "end both trainings there; for a try, whose numbers are not kept")
    table: bool = flag(False, "print README.md's table, and compute nothing")


def demo(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """The report of both stages."""
    line = [sys.executable, str(ROOT / "scripts/digits.py"), "--seed", str(seed)]
    subprocess.run([*line, "--max_steps", str(steps)], cwd=folder, check=True)
    (path,) = folder.glob("logs/*_digits_transformer/report/report.json")
    metrics: dict[str, Any] = json.loads(path.read_text())["metrics"]
    return metrics


def numbers_of(metrics: dict[str, Any]) -> dict[str, float]:
    """Those of README.md's table."""
    own = metrics["by_own_classifier"]
    return {
        "l1": metrics["first_stage"]["l1"],
        "codebook_usage": metrics["first_stage"]["codebook_usage"],
        "nats_per_token": metrics["transformer"]["nats_per_token"],
        "named_right": metrics["samples"]["named_right_by_5_neighbours"],
        "fid": own["samples"]["fid"],
        "fid_of_validation_images": own["validation_images"]["fid"],
    }


def span(values: Sequence[float], digits: int) -> str:
    """`0.6 to 1.4`, rounded such that all values lie in it."""
    unit = 10**digits
    low, high = math.floor(min(values) * unit) / unit, math.ceil(max(values) * unit) / unit
    return f"{low:.{digits}f} to {high:.{digits}f}"


def readme_table(kept: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of README.md."""
    values = {name: [run[name] for run in kept] for name in kept[0]}
    percent = {n: span([100 * v for v in values[n]], 0) for n in ("codebook_usage", "named_right")}
    real = max(values["fid_of_validation_images"])
    rows = {
        "reconstruction error (L1, images in [-1, 1])": span(values["l1"], 2),
        "codebook in use": f"{percent['codebook_usage']} % of 64 codes",
        "validation loss": f"{span(values['nats_per_token'], 1)} nats per token; a uniform guess "
        f"gives log 64 = {math.log(64):.2f}",
        "samples whose class a nearest-neighbor classifier of real digits finds": (
            f"{percent['named_right']} % of 500"
        ),
        "FID of the samples by the demo's own classifier (of real digits unseen in training)": (
            f"{span(values['fid'], 1)} ({real:.2f})"
        ),
    }
    return [f"| {what} | {expected} |" for what, expected in rows.items()]


def key_of(entry: dict[str, Any]) -> tuple[str, int]:
    return entry["torch"], entry["seed"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    kept: list[dict[str, Any]] = json.loads(PATH.read_text()) if PATH.exists() else []
    if options.table:
        return print("\n".join(readme_table(kept)))
    for seed in options.seeds:
        place = {"torch": torch.__version__, "seed": seed, "python": platform.python_version()}
        place |= {"processor": processor_name(), "threads": torch.get_num_threads()}
        if key_of(place) in map(key_of, kept):
            continue
        with tempfile.TemporaryDirectory() as folder:
            numbers = numbers_of(demo(Path(folder), seed, options.steps))
        print(
            f"seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        )
        if options.steps < 0:
            kept = json.loads(PATH.read_text()) if PATH.exists() else []  # by others meanwhile
            kept = sorted([*kept, {**place, **numbers}], key=key_of)
            write_text(PATH, json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""The numbers of `make demo` over several seeds: README.md's table gives their range.

    python benchmarks/demo.py --seeds 0,1,2,3,4

Each seed trains both stages, samples and reports, in four to ten minutes on two cores. Numbers go
to results/demo-cpu.json after each, beside those of other seeds and versions of torch; what is
there is not computed again.
"""

from __future__ import annotations

import json
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


def run(folder: Path, script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(ROOT / script), *arguments], cwd=folder, check=True)


def train(folder: Path, config: str, seed: int, steps: int, *overrides: str) -> Path:
    """The run's folder."""
    flags = ["-t", "True", "--seed", str(seed), "--enable_progress_bar", "False"]
    flags += ["--max_steps", str(steps)] if steps > 0 else []
    run(folder, "main.py", "--base", str(ROOT / f"configs/{config}.yaml"), *flags, *overrides)
    return max(folder.glob(f"logs/*_{config}"))


def demo(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """The report of both stages, as the Makefile's target makes it."""
    vqgan = train(folder, "digits_vqgan", seed, steps)
    first = f"model.params.first_stage_config={vqgan}"
    transformer = str(train(folder, "digits_transformer", seed, steps, first))
    sampling = ("--num_samples", "50", "--batch_size", "100", "--top_p", "0.95")
    run(folder, "scripts/sample_fast.py", "-r", transformer, *sampling)
    run(folder, "scripts/report.py", "-r", transformer)
    report: dict[str, Any] = json.loads(Path(transformer, "report/report.json").read_text())
    return report["metrics"]


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


def key_of(entry: dict[str, Any]) -> tuple[str, int]:
    return entry["torch"], entry["seed"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    kept: list[dict[str, Any]] = json.loads(PATH.read_text()) if PATH.exists() else []
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

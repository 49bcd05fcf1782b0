"""The whole way on handwritten digits: train both stages, sample, and report; minutes on a CPU.

    python scripts/digits.py

The digits come with scikit-learn. `make demo` runs this.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import taming
from taming.command_line import Parser, add_flags, flag, from_flags
from taming.errors import UserError, command


@dataclass(frozen=True)
class Options:
    seed: int = flag(23, "of both stages", "-s")
    max_steps: int = flag(-1, "end each training there, for a look; -1: the whole course")
    num_samples: int = flag(50, "samples of each class", "-n")

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"--num_samples must be at least 1, not {self.num_samples}")


def run(arguments: Sequence[str]) -> None:
    """Run one command in a process of its own; SystemExit if it fails, which has said why."""
    print(f"\ntaming {shlex.join(arguments)}", flush=True)
    package = Path(taming.__file__).parents[1]  # of a clone, it may not be installed
    paths = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    line = [sys.executable, "-m", "taming", *arguments]
    code = subprocess.run(line, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode
    if code:
        raise SystemExit(code)


def train(options: Options, config: str, *overrides: str) -> str:
    """Train, and return the run's folder."""
    steps = ["--max_steps", str(options.max_steps)] if options.max_steps > 0 else []
    flags = ["--base", config, "-t", "True", "--seed", str(options.seed), *steps]
    run(["train", *flags, *overrides])
    runs = Path("logs").glob(f"*_{config}")
    return str(max(runs, key=lambda run: run.stat().st_mtime))


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    vqgan = train(options, "digits_vqgan")
    trained = train(options, "digits_transformer", f"model.params.first_stage_config={vqgan}")
    number = ("--num_samples", str(options.num_samples), "--batch_size", "100")
    run(["sample", "-r", trained, *number, "--top_p", "0.95"])
    run(["report", "-r", trained])


if __name__ == "__main__":
    main()

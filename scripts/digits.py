"""The whole way on handwritten digits: train both stages, sample, and report; minutes on a CPU.

    python scripts/digits.py

The digits come with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from taming.command_line import Parser, add_flags, flag, from_flags
from taming.errors import UserError, command
from taming.training.apart import RUN_TIME, run_apart, step_flags


@dataclass(frozen=True)
class Options:
    seed: int = flag(23, "of both stages", "-s")
    max_steps: int = flag(-1, "end each training there, for a look; -1: the whole course")
    num_samples: int = flag(50, "samples of each class", "-n")

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"--num_samples must be at least 1, not {self.num_samples}")
        step_flags(self.max_steps)


def train(options: Options, config: str, *overrides: str) -> str:
    """Train, and return the run's folder."""
    flags = ["--base", config, "-t", "True", "--seed", str(options.seed)]
    run_apart(["train", *flags, *step_flags(options.max_steps), *overrides])
    return str(max(Path("logs").glob(RUN_TIME + config)))


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    vqgan = train(options, "digits_vqgan")
    trained = train(options, "digits_transformer", f"model.params.first_stage_config={vqgan}")
    number = ("--num_samples", str(options.num_samples), "--batch_size", "100")
    run_apart(["sample", "-r", trained, *number, "--top_p", "0.95"])
    run_apart(["report", "-r", trained])


if __name__ == "__main__":
    main()

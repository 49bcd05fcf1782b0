"""All that needs a CUDA device: the tests marked gpu, then the benchmarks at the papers' sizes.

    python benchmarks/gpu.py            # within nine minutes; again: what is left
    python benchmarks/gpu.py --list     # the steps, and how long each may take

A step that has passed on this GPU with this code is skipped; `results/gpu-cuda.json` keeps which
have. Each step has a time of its own, after which it is ended, so that the next ones are reached.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measure
import torch

from taming.atomic_files import atomic_path
from taming.errors import UserError, command

ROOT = Path(__file__).parents[1]
CUDA = ("--device", "cuda")
WRITTEN = "written to "  # before the name of a benchmark's result
PASSED, FAILED, TIMED_OUT, SKIPPED = "passed", "FAILED", "OUT OF TIME", "passed before"


@dataclass(frozen=True)
class Step:
    """A command that may take so many seconds.

    `figures` are the places of the numbers that the summary shows, with their units, in the file
    that the command says it has written.
    """

    name: str
    words: Sequence[str]
    seconds: int
    figures: Mapping[str, Sequence[str]] | None = None


def benchmark(name: str, words: str, seconds: int, **figures: str) -> Step:
    """A step of `benchmarks/<script> --device cuda ...`; figures are written with slashes."""
    script, *options = words.split()
    places = {unit: place.split("/") for unit, place in figures.items()}
    return Step(name, (f"benchmarks/{script}", *CUDA, *options), seconds, places)


def files_for_gpus(tests: Path = ROOT / "tests") -> list[str]:
    """The tests that are marked so: others may import what is not installed beside a GPU."""
    return [
        str(path.relative_to(tests.parent))
        for path in sorted(tests.rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text("utf-8")
    ]


# By name, so that the end of the output tells which were done when their time was up.
WORKERS = 4
TESTS = ("-m", "gpu", "-vv", "-n", str(WORKERS), "--maxfail=20")
# The most valuable first. Together they take less than nine minutes.
STEPS = (
    Step("tests", ("-m", "pytest", *TESTS, *files_for_gpus()), 123),
    benchmark(
        "training, 1.4 billion parameters",
        "throughput.py transformer --batch_size 80 --steps 4",
        42,
        images_per_s="images_per_second",
        share_of_peak="share_of_peak",
    ),
    benchmark(
        "sampling, 1.4 billion parameters",
        "sampling.py --size gpu --precision bf16 --only steps --rounds 3 --alone 1 256",
        45,
        tokens_per_s_of_1="steps/batch 1/tokens_per_s/engine",
        tokens_per_s_of_256="steps/batch 256/tokens_per_s/engine",
    ),
    benchmark(
        "training, first stage",
        "throughput.py first_stage --batch_size 96 --steps 4",
        95,
        images_per_s="images_per_second",
        share_of_peak="share_of_peak",
    ),
    benchmark(
        "training steps against the original's",
        "training.py --stage paper --batch_size 8 --fast --rounds 3 --no_memory",
        60,
        s_first_stage="first_stage/seconds/fast, reuse, bf16/median",
        s_transformer="transformer/seconds/ours, bf16/median",
    ),
    benchmark(
        "steps on cached codes",
        "codes.py --precision bf16 --batch_size 16 --rounds 3",
        30,
        s_codes="seconds/codes/median",
    ),
    benchmark(
        "first stage, encode and decode",
        "first_stage.py --dtype bf16 --batch_size 16 --rounds 5",
        90,
        encoded_per_s="images_per_second/encode, compiled",
        decoded_per_s="images_per_second/decode, compiled",
    ),
    benchmark(
        "checkpoints",
        "saving.py --gigabytes 0.5 --rounds 2",
        25,
        s_stopped="seconds/stopped_in_background/median",
    ),
    benchmark(
        "guidance",
        "guidance.py --guide vit --channels 128 --rounds 3",
        20,
        times_the_plain_loop="ratio",
    ),
)


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    name: str
    state: str
    seconds: float
    figures: Mapping[str, float]
    result: str | None = None  # the file that it has written, relative to the clone


def code_version(root: Path = ROOT) -> str:
    """A digest of the code that is measured and tested, committed or not."""
    digest = hashlib.sha256()
    for folder in ("taming", "benchmarks", "tests", "configs"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Record:
    """Which steps have passed on this hardware with this code, in a file."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path, self.facts = path, dict(facts)
        self.outcomes: dict[str, Outcome] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(path.read_text())
            if {name: content[name] for name in facts} == self.facts:
                self.outcomes = {row["name"]: Outcome(**row) for row in content["steps"]}

    def passed(self, step: Step) -> Outcome | None:
        """How a step passed before; None if it has not, or its results are gone."""
        outcome = self.outcomes.get(step.name)
        if outcome is None or outcome.state != PASSED:
            return None
        there = outcome.result is None or (ROOT / outcome.result).is_file()
        return outcome if there else None

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.name] = outcome
        rows = [asdict(one) for one in self.outcomes.values()]
        self.path.parent.mkdir(exist_ok=True)
        with atomic_path(self.path) as partial:
            partial.write_text(json.dumps({**self.facts, "steps": rows}, indent=2) + "\n")


def run(step: Step) -> Outcome:
    """Run a step, and show the end of what it printed."""
    print(f"== {step.name}: {' '.join(step.words)}", flush=True)
    start = time.monotonic()
    state, lines = _run(step)
    figures: dict[str, float] = {}
    written = [line[len(WRITTEN) :] for line in lines if line.startswith(WRITTEN)]
    result = os.path.relpath(written[-1], ROOT) if written else None
    if state == PASSED and step.figures:
        try:
            figures = _figures(step.figures, result)
        except (OSError, LookupError, ValueError) as error:
            state = FAILED
            lines.append(f"{result} is not what was expected: {error!r}")
    print("\n".join(lines[-6 if state == PASSED else -60 :]), flush=True)
    return Outcome(step.name, state, round(time.monotonic() - start, 1), figures, result)


def _run(step: Step) -> tuple[str, list[str]]:
    """How it ended, and the lines that it printed."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    variables = {**os.environ, "PYTHONPATH": path, "TQDM_DISABLE": "1"}
    if "pytest" in step.words:  # its workers share the processors
        variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // WORKERS))
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, *step.words],
            cwd=ROOT,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the processes that it starts end with it
        )
        state = _state_of(process, step.seconds)
        output.seek(0)
        return state, output.read().splitlines()


def _state_of(process: subprocess.Popen[Any], seconds: float) -> str:
    try:
        return FAILED if process.wait(seconds) else PASSED
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _figures(places: Mapping[str, Sequence[str]], result: str | None) -> dict[str, float]:
    if result is None:
        raise ValueError("nothing was written")
    content, figures = json.loads((ROOT / result).read_text()), {}
    for unit, place in places.items():
        value: Any = content
        for key in place:
            value = value[key]
        figures[unit] = value
    return figures


def run_all(steps: Sequence[Step], record: Record) -> list[Outcome]:
    """Run those of the steps that have not passed yet, in order; all of their outcomes."""
    outcomes = []
    for step in steps:
        before = record.passed(step)
        if before is None:
            outcome = run(step)
            record.add(outcome)
        else:
            outcome = Outcome(step.name, SKIPPED, before.seconds, before.figures)
        outcomes.append(outcome)
    return outcomes


def summary(outcomes: Sequence[Outcome], facts: Mapping[str, Any]) -> str:
    """A line for each step."""
    width = max(len(outcome.name) for outcome in outcomes)
    lines = [", ".join(f"{name}: {value}" for name, value in facts.items())]
    for one in outcomes:
        figures = ", ".join(f"{unit} {value:.4g}" for unit, value in one.figures.items())
        lines.append(
            f"{one.name:{width}}  {one.state:13}  {one.seconds:6.1f} s  {figures}".rstrip()
        )
    bad = [one.name for one in outcomes if one.state not in (PASSED, SKIPPED)]
    lines.append(f"not passed: {', '.join(bad)}" if bad else "all passed")
    return "\n".join(lines)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--list", action="store_true", help="show the steps, and run none")
    parser.add_argument("--again", action="store_true", help="also what has passed before")
    args = parser.parse_args()
    if args.list:
        for step in STEPS:
            print(f"{step.seconds:4} s  {step.name}: {' '.join(step.words)}")
        return
    if not torch.cuda.is_available():
        raise UserError("this needs a CUDA device, and torch finds none; make test needs no GPU")
    facts = {**measure.hardware(torch.device("cuda")), "code": code_version()}
    record = Record(measure.RESULTS / "gpu-cuda.json", facts)
    if args.again:
        record.outcomes.clear()
    outcomes = run_all(STEPS, record)
    print(summary(outcomes, facts))
    raise SystemExit(any(one.state not in (PASSED, SKIPPED) for one in outcomes))


if __name__ == "__main__":
    main()

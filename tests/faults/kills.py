"""A fault in a training run, the run resumed until it is finished, and how that went."""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from taming.checkpoint import read_checkpoint
from taming.errors import UserError
from tests.faults.cases import BATCHES, CASES, EPOCHS, write_case
from tests.faults.hooks import Fault, environment
from tests.kit.comparison import differences, only_run
from tests.kit.launch import Ended, Launcher

TRAIN = ["-t", "True", "--no-test", "True"]

# Exit codes; a crash ends as Python ends it.
CODES = {"SIGKILL": 137, "SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 0, "raise": 2}

# Kinds of moments -> the moments of hooks.py.
MOMENTS: dict[str, list[str]] = {
    "in a step": [
        "on_train_batch_start",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "on_train_batch_end",
    ],
    "at an epoch's end": ["on_train_epoch_end", "on_train_epoch_start"],
    "in validation": [
        "on_validation_start",
        "on_validation_batch_start",
        "on_validation_batch_end",
        "on_validation_epoch_end",
        "on_validation_end",
    ],
    "in image logging": ["open:*/images/*.png*"],
    "in a save": ["on_save_checkpoint", "half:*.ckpt*", "rename:*.ckpt", "renamed:*.ckpt"],
    "in a signal's handler": ["half:*.ckpt*", "rename:*.ckpt", "renamed:*.ckpt"],
}


@dataclass(frozen=True)
class Kill:
    """A case and the faults of its first start."""

    case: str
    kind: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        return f"{self.case}, {', then '.join(map(str, self.faults))}"


def random_kills(seed: int, count: int) -> list[Kill]:
    """Kills that take turns over cases and kinds of moments; a function of the seed."""
    rng = random.Random(seed)
    kinds, cases = list(MOMENTS), list(CASES)
    order = [(kind, case) for kind in kinds for case in cases]
    rng.shuffle(order)
    return [_random_kill(rng, *order[number % len(order)]) for number in range(count)]


def _random_kill(rng: random.Random, kind: str, case: str) -> Kill:
    moment = rng.choice(MOMENTS[kind])
    action = rng.choices(("SIGKILL", "SIGTERM", "SIGINT", "raise", "SIGUSR1"), (8, 4, 3, 2, 1))[0]
    # Moments of which there are few come early enough to be reached.
    latest = (EPOCHS - 1) * BATCHES if kind in ("in a step", "in image logging") else BATCHES
    fault = Fault(moment, action, rng.randint(1, latest), rng.randint(1, 2))
    if kind == "in a signal's handler":
        first = Fault(
            "on_train_batch_end", rng.choice(("SIGTERM", "SIGINT", "SIGUSR1")), fault.batch
        )
        return Kill(case, kind, (first, replace(fault, action="SIGKILL", batch=1, nth=1)))
    if action == "SIGUSR1":  # saves, and goes on until it is killed
        death = Fault("on_train_batch_end", "SIGKILL", fault.batch + 3)
        return Kill(case, kind, (fault, death))
    return Kill(case, kind, (fault,))


@dataclass
class Outcome:
    """How a kill went. `problems` is empty where all is as it should be."""

    kill: Kill
    first: Ended
    resumes: list[Ended] = field(default_factory=list)
    happened: int = 0  # faults
    died_at: int = 0  # batches that were finished
    went_on_at: int = 0  # the first batch of the resumed run, less one
    saved_at: int = 0  # batches in the newest whole checkpoint
    problems: list[str] = field(default_factory=list)

    @property
    def action(self) -> str:
        """What ended the first start; of two faults, the second may have had no occasion."""
        return self.kill.faults[max(self.happened, 1) - 1].action

    @property
    def lost(self) -> int:
        """Batches that were trained a second time."""
        return max(0, self.died_at - self.went_on_at)


class Injection:
    """Runs kills in folders below `root`; each case's uninterrupted run is made once."""

    def __init__(self, launcher: Launcher, root: Path) -> None:
        self.launcher, self.root = launcher, root
        self._whole: dict[str, Path] = {}
        self._number = 0

    def uninterrupted(self, case: str) -> Path:
        """The run of a case that nothing happens to."""
        if case not in self._whole:
            folder = self.root / f"whole_{case}"
            ended = self.start(case, folder, "whole.log", [])
            assert ended.code == 0, ended.output
            run = only_run(folder)
            assert run is not None
            self._whole[case] = run
        return self._whole[case]

    def start(
        self, case: str, folder: Path, log: str, faults: list[Fault], fresh: bool = False
    ) -> Ended:
        """Start a case in `folder` with faults."""
        config = write_case(case, folder)
        variables = environment(faults, folder / log)
        arguments = ["--base", config, *TRAIN]
        return self.launcher.run(arguments, folder, environment=variables, fresh=fresh)

    def resume(self, folder: Path, log: str) -> Ended:
        """Go on with the run in `folder`, without faults."""
        run = only_run(folder)
        assert run is not None
        variables = environment([], folder / log)
        arguments = ["-r", str(run.relative_to(folder)), *TRAIN]
        return self.launcher.run(arguments, folder, environment=variables)

    def inflict(self, kill: Kill, keep: bool = False) -> Outcome:
        """Train with the faults, resume, compare; the folder is removed unless `keep`."""
        whole = self.uninterrupted(kill.case)
        self._number += 1
        folder = self.root / f"kill_{self._number}"
        outcome = Outcome(kill, self.start(kill.case, folder, "first.log", list(kill.faults)))
        Judge(outcome, folder, whole, self).judge()
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        return outcome


class Judge:
    """Resumes what a fault has stopped and writes down what is not as it should be."""

    def __init__(self, outcome: Outcome, folder: Path, whole: Path, injection: Injection) -> None:
        self.outcome, self.folder, self.whole = outcome, folder, whole
        self.injection = injection

    def judge(self) -> None:
        """Fill in the outcome."""
        outcome, problems = self.outcome, self.outcome.problems
        outcome.happened = sum(" fault " in line for line in self._log("first.log"))
        outcome.died_at = max(self._batches("first.log", "end"), default=0)
        if not outcome.happened:
            problems.append("the moment did not come")
        self._judge_end()
        if self.run is None:
            problems.append("no run folder to go on with")
            return
        outcome.saved_at = self._newest_save()
        if outcome.first.code != 0 or outcome.died_at < EPOCHS * BATCHES:
            self._resume()
        problems += differences(self.whole, self.run)

    @cached_property
    def run(self) -> Path | None:
        return only_run(self.folder)

    def _log(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.is_file() else []

    def _batches(self, log: str, what: str) -> list[int]:
        found = (re.fullmatch(rf"\d+ {what} (\d+)", line) for line in self._log(log))
        return [int(match[1]) for match in found if match]

    def _judge_end(self) -> None:
        first, action = self.outcome.first, self.outcome.action
        problems = self.outcome.problems
        if first.hung:
            problems.append("hung")
        elif self.outcome.happened and first.code != CODES[action]:
            problems.append(f"exit code {first.code} instead of {CODES[action]} after {action}")
        if action in ("SIGTERM", "SIGINT") and self.outcome.happened:
            if first.traceback:
                problems.append(f"traceback after {action}: {first.last_line[:100]}")
            if not re.search(r"-r \S*logs/", first.output[-500:]):
                problems.append(f"does not say how to go on after {action}")

    def _newest_save(self) -> int:
        """Batches trained in the newest whole checkpoint that the fault has left."""
        newest = 0
        assert self.run is not None
        for path in self.run.glob("checkpoints/*.ckpt"):
            try:
                loops = read_checkpoint(path)["loops"]["fit_loop"]
                progress = loops["epoch_loop.batch_progress"]["total"]
                newest = max(newest, int(progress["completed"]), int(progress["processed"]))
            except (UserError, KeyError):
                self.outcome.problems.append(f"{path.name} is damaged")
        return newest

    def _resume(self) -> None:
        outcome = self.outcome
        ended = self.injection.resume(self.folder, "second.log")
        outcome.resumes.append(ended)
        begun = self._batches("second.log", "begin")
        outcome.went_on_at = begun[0] - 1 if begun else EPOCHS * BATCHES
        if ended.code != 0:
            outcome.problems.append(f"resume: exit code {ended.code}: {ended.last_line[:160]}")
            return
        wanted = list(range(outcome.went_on_at + 1, EPOCHS * BATCHES + 1))
        if begun != wanted:
            left_out = sorted(set(wanted) - set(begun))
            outcome.problems.append(
                f"resume trained {len(begun)} of {len(wanted)} batches"
                + (f", not {left_out[0]} to {left_out[-1]}" if left_out else "")
            )
        if outcome.went_on_at < outcome.saved_at:
            outcome.problems.append(
                f"went on after batch {outcome.went_on_at}, though {outcome.saved_at} were saved"
            )
        if outcome.went_on_at > outcome.died_at + 1:
            outcome.problems.append(
                f"batches {outcome.died_at + 1} to {outcome.went_on_at} were never trained"
            )
        if outcome.action in ("SIGTERM", "SIGINT") and outcome.lost:
            outcome.problems.append(f"{outcome.lost} batches lost by {outcome.action}")

"""Parts of `run.py` beside kills: each returns the lines of its table, and whether all is well."""

from __future__ import annotations

import itertools
import re
import statistics
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from tests.faults.cases import CASES, write_case
from tests.faults.damage import KINDS, DamagedRuns, random_damages
from tests.faults.fuzz import CAMPAIGNS, known_cases, run_campaign, shown
from tests.faults.hooks import Fault, environment
from tests.faults.hostile import hostile_files
from tests.faults.kills import TRAIN, Injection
from tests.faults.made_up_input import PLACES, attacked
from tests.faults.made_up_values import ATTACKS
from tests.faults.sandbox import GOOD, Sandbox
from tests.faults.training import Trial
from tests.kit.comparison import differences
from tests.kit.launch import ROOT, Launcher

Part = tuple[list[str], bool]
WEIGHTS = ("last.ckpt", "epoch=", "left behind")


def progress(text: str) -> None:
    """For whoever waits."""
    print(text, file=sys.stderr, flush=True)


def damage(args: Namespace, folder: Path) -> Part:
    """Flips, cuts and holes in the newest checkpoints."""
    with Launcher() as launcher:
        run = Injection(launcher, folder / "runs").uninterrupted("vqgan")
    runs = DamagedRuns(run, folder)
    bad: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    totals: Counter[str] = Counter()
    for number, one in enumerate(random_damages(args.seed, args.damages)):
        totals[one.kind] += 1
        problems = runs.problems(one, both=number % 2 == 1)
        # Without numbers and names, to be counted.
        bad[one.kind].update([re.split(r": |\.ckpt", problem)[0] for problem in problems[:1]])
        if number % 100 == 99:
            progress(f"damage: {number + 1}/{args.damages}")
    rows = [
        "| damage | cases | recognised, the newest whole one used | otherwise |",
        "|---|---|---|---|",
    ]
    for kind in KINDS:
        wrong = sum(bad[kind].values())
        told = "; ".join(f"{count} {what}" for what, count in bad[kind].items()) or "-"
        rows.append(f"| {kind} | {totals[kind]} | {totals[kind] - wrong} | {told} |")
    return rows, not any(bad.values())


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """A disk of 64 MB at `folder`, if this user may mount one; yields what fills it."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield "fill" if mounted else "full"
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def disk(args: Namespace, folder: Path) -> Part:
    """Disks that are full for a while, and from some moment on."""
    rows = ["| what | how | what is not right |", "|---|---|---|"]
    good = True
    with Launcher() as launcher:
        injection = Injection(launcher, folder / "runs")
        for case in ("vqgan", "transformer"):
            whole = injection.uninterrupted(case)
            for last in (30, None):
                place = folder / f"{case}_{last}"
                with small_disk(place) as fill:
                    faults = [Fault("on_train_batch_end", fill, 20)]
                    faults += [Fault("on_train_batch_end", "room", last)] if last else []
                    trial = Trial(launcher, place, case)
                    ended = trial.start(faults=faults)
                    problems = ["traceback"] if ended.traceback else []
                    if (ended.code == 0) != bool(last):
                        problems.append(f"exit code {ended.code}")
                    if not last:
                        (place / "filler").unlink(missing_ok=True)
                        problems += [] if trial.resume().code == 0 else ["cannot be resumed"]
                    left = differences(whole, trial.run)
                    # What is logged while the disk is full is lost with it, and so is that save.
                    problems += [line for line in left if not last or line.startswith(WEIGHTS)]
                until = f"until batch {last}" if last else "to the end"
                how = "a disk" if fill == "fill" else "a limit of files"
                rows.append(f"| {case}, full from batch 20 {until} | {how} | {_cell(problems)} |")
                good &= not problems
    return rows, good


def ranks(args: Namespace, folder: Path) -> Part:
    """Two processes."""
    two = ["--accelerator", "cpu", "--devices", "2"]
    length = {"data__params__train__params__length": 48}
    faults = {
        "SIGKILL to rank 1": Fault("on_before_backward", "SIGKILL", 6, rank=1, to="alone"),
        "SIGKILL to rank 0": Fault("on_before_backward", "SIGKILL", 6, rank=0, to="alone"),
        "SIGTERM to both": Fault("on_before_optimizer_step", "SIGTERM", 17, to="group"),
        "SIGTERM to rank 0": Fault("on_before_optimizer_step", "SIGTERM", 17),
        "SIGINT to both": Fault("on_before_backward", "SIGINT", 17, to="group"),
        "SIGKILL to both": Fault("on_before_backward", "SIGKILL", 17),
    }
    rows = ["| what | exit | seconds | last line | after the resume |", "|---|---|---|---|---|"]
    good = True
    with Launcher() as launcher:
        whole = Trial(launcher, folder / "whole")
        whole.start(*two, fresh=True, **length)
        for name, fault in faults.items():
            trial = Trial(launcher, folder / name.replace(" ", "_"))
            ended = trial.start(*two, faults=[fault], fresh=True, **length)
            progress(f"ranks: {name}: exit {ended.code}, {ended.last_line}")
            again = trial.resume(*two, fresh=True)
            problems = [] if again.code == 0 else [f"exit {again.code}: {again.last_line[:100]}"]
            problems += differences(whole.run, trial.run)
            line = ended.last_line[:120].replace("|", "/")
            cells = (name, ended.code, round(ended.seconds), line, _cell(problems))
            rows.append(f"| {' | '.join(map(str, cells))} |")
            good &= not problems and not ended.traceback and ended.code != 0
    return rows, good


def hostile(args: Namespace, folder: Path) -> Part:
    """Files and configs that are made to do harm."""
    rows = ["| given to | cases | refused in a sentence | otherwise |", "|---|---|---|---|"]
    totals: Counter[str] = Counter()
    bad: dict[str, list[str]] = {}
    with Sandbox() as sandbox:
        for target, what, content in hostile_files():
            totals[target] += 1
            answer = sandbox.run(target, content.decode("latin-1"))
            if not answer.startswith("refused: "):
                bad.setdefault(target, []).append(f"{what}: {answer[:100]}")
        for target, params in ATTACKS:
            for place in PLACES:
                totals["stranger's config"] += 1
                answer = sandbox.run("stranger", attacked(place, target, params))
                if not answer.startswith("refused: "):
                    bad.setdefault("stranger's config", []).append(f"{target}: {answer[:80]}")
    for target, total in totals.items():
        wrong = bad.get(target, [])
        told = "<br>".join(wrong[:12]).replace("|", "/") or "-"
        rows.append(f"| {target} | {total} | {total - len(wrong)} | {told} |")
    return rows, not bad


def fuzz(args: Namespace, folder: Path) -> Part:
    """Made-up input of all kinds."""
    rows = ["| input | cases | refused or fine | tracebacks | hangs, deaths | executed, written |"]
    rows += ["|---|---|---|---|---|---|"]
    examples: list[str] = []
    good = True
    with Sandbox() as sandbox:
        for name, (_, _, share) in CAMPAIGNS.items():
            campaign = run_campaign(sandbox, name, round(args.cases * share), args.seed)
            counts = campaign.answers
            fine = sum(counts[kind] for kind in GOOD)
            traced = counts["traceback"] + counts["no sentence"]
            did = counts["executed"] + counts["written outside"]
            others = campaign.cases - fine - traced - did
            rows.append(f"| {name} | {campaign.cases} | {fine} | {traced} | {others} | {did} |")
            examples += [
                f"- {name}: {answer}: `{shown(case)}`" for answer, case in campaign.bad.values()
            ]
            good &= not campaign.bad
            progress(f"fuzz: {name}: {campaign.bad_cases} of {campaign.cases}")
        known = known_cases()
        failed = [one for one in known if sandbox.run(*one).partition(":")[0] not in GOOD]
        rows.append(f"| known to have failed | {len(known)} | {len(known) - len(failed)} | | | |")
    if args.examples:
        args.examples.write_text("\n".join(examples) + "\n")
    return rows, good and not failed


def cost(args: Namespace, folder: Path) -> Part:
    """How long training stops for a save of 1 GB, and how long a step takes."""
    rows = ["| what | |", "|---|---|"]
    with Launcher() as launcher:
        config = OmegaConf.create(CASES["transformer"]())
        config.model = {
            "base_learning_rate": 0.0,
            "target": "tests.faults.hooks.Ballast",
            "params": {"megabytes": 1000},
        }
        config.data.params.train.params.length = 160
        del config.data.params["validation"]
        config.lightning.trainer.max_epochs = 1
        config.lightning.modelcheckpoint = {"params": {"every_n_train_steps": 20}}
        place = folder / "pause"
        place.mkdir()
        OmegaConf.save(config, place / "ballast.yaml")
        variables = environment([], place / "pause.log")
        ended = launcher.run(
            ["--base", "ballast.yaml", *TRAIN], place, environment=variables, limit=300
        )
        assert ended.code == 0, ended.output
        times = [float(t) for t in re.findall(r"time ([\d.]+)", (place / "pause.log").read_text())]
        gaps = sorted(after - before for before, after in itertools.pairwise(times))
        pause = gaps[-1] - statistics.median(gaps)
        rows.append(f"| training stops for a save of 1 GB, at most | {pause:.2f} s |")
        step = _milliseconds(launcher, folder / "own", ROOT)
        rows.append(f"| a step of the smallest VQGAN | {step:.2f} ms |")
        if args.baseline:
            base = _milliseconds(launcher, folder / "base", args.baseline.resolve())
            rows.append(f"| in {args.baseline.name} | {base:.2f} ms |")
    return rows, pause <= 0.5


def _milliseconds(launcher: Launcher, folder: Path, root: Path) -> float:
    """A step's time, from the difference of a long and a short run, the best of three."""
    config = write_case("vqgan", folder)
    tree = OmegaConf.load(config)
    del tree.lightning.callbacks["faults"]
    digits = {"target": "taming.data.digits.DigitsTrain", "params": {"size": 8}}
    tree.data.params.train = tree.data.params.validation = digits
    OmegaConf.save(tree, config)
    times = []
    for number in range(6):
        steps = (100, 500)[number % 2]
        (folder / str(number)).mkdir()
        ended = launcher.run(
            ["--base", config, *TRAIN, "--max_epochs", "1", "--max_steps", str(steps)],
            folder / str(number),
            environment={"PYTHONPATH": str(root)},
            fresh=True,
            limit=300,
            root=root,
        )
        assert ended.code == 0, ended.output
        times.append(ended.seconds)
    return (min(times[1::2]) - min(times[::2])) / 400 * 1000


def _cell(problems: list[str]) -> str:
    return "<br>".join(problem.replace("|", "/") for problem in problems) or "none"

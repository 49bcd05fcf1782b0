"""How runs end and go on: exit codes, signals, workers, and the paths that -r takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.hooks import Fault
from tests.faults.kills import TRAIN, Injection
from tests.faults.training import Trial, is_sentence
from tests.kit.comparison import differences
from tests.kit.launch import Launcher


def test_a_second_interrupt_stops_at_once(injection: Injection, tmp_path: Path) -> None:
    """While the first one's save is being written."""
    trial = Trial(injection.launcher, tmp_path, "transformer")
    faults = [Fault("on_after_backward", "SIGINT", 15), Fault("half:*.ckpt*", "SIGINT")]
    ended = trial.start(faults=faults)
    assert ended.code == 130 and not ended.traceback, ended.output
    assert trial.resume().code == 0
    left = differences(injection.uninterrupted("transformer"), trial.run)
    assert not left, "\n".join(left)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["process", "group"])
def test_sigterm_with_workers(injection: Injection, tmp_path: Path, to: str) -> None:
    """Clusters send it to all processes of a job, others only to the first."""
    trial = Trial(injection.launcher, tmp_path, "vqgan_workers")
    ended = trial.start(faults=[Fault("on_before_backward", "SIGTERM", 16, to=to)])
    assert ended.code == 143 and not ended.traceback, ended.output
    assert "-r logs/" in ended.last_line
    assert trial.resume().code == 0
    assert trial.batches(2)[0] == trial.batches(1)[-1] + 1
    left = differences(injection.uninterrupted("vqgan_workers"), trial.run)
    assert not left, "\n".join(left)


def test_sigusr1_inside_a_window_saves_and_goes_on(injection: Injection, tmp_path: Path) -> None:
    """The second batch of five: saved after the fifth. The run is killed later, and goes on."""
    trial = Trial(injection.launcher, tmp_path, "ema")
    faults = [
        Fault("on_before_backward", "SIGUSR1", 14),
        Fault("on_train_batch_end", "SIGKILL", 18),
    ]
    assert trial.start(faults=faults).code == 137
    assert trial.resume().code == 0
    assert trial.batches(2)[0] == 18
    left = differences(injection.uninterrupted("ema"), trial.run)
    assert not left, "\n".join(left)


def test_a_killed_worker_is_named(launcher: Launcher, tmp_path: Path) -> None:
    trial = Trial(launcher, tmp_path, "vqgan_workers")
    ended = trial.start(faults=[Fault("item", "SIGKILL", batch=0, nth=25, to="alone")])
    assert ended.code not in (0, 1) and is_sentence(ended, "worker", "memory"), ended.output
    assert "-r logs/" in ended.output


def test_no_worker_outlives_its_parent(launcher: Launcher, tmp_path: Path) -> None:
    trial = Trial(launcher, tmp_path, "vqgan_workers")
    ended = trial.start(faults=[Fault("on_before_backward", "SIGKILL", 8, to="alone")])
    assert ended.code == 137 and not ended.orphans


@pytest.fixture(scope="module")
def finished(injection: Injection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run at logs/run."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(injection.uninterrupted("transformer"), folder / "logs" / "run")
    return folder


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (".", "logs/run"),
        (".", "logs/run/"),
        (".", "logs/run/checkpoints"),
        (".", "logs/run/checkpoints/last.ckpt"),
        ("logs/run", "."),
        ("logs/run/checkpoints", "last.ckpt"),
        (".", "~/logs/run"),
    ],
)
def test_a_finished_run_says_so(launcher: Launcher, finished: Path, place: str, path: str) -> None:
    """However it is named; and how to go on."""
    home = {"HOME": str(finished)}
    ended = launcher.run(["-r", path, *TRAIN], finished / place, environment=home)
    assert ended.code == 0 and not ended.traceback, ended.output
    assert "finished" in ended.output and "max_epochs" in ended.output, ended.output


def test_resuming_without_training_says_so(launcher: Launcher, finished: Path) -> None:
    ended = launcher.run(["-r", "logs/run"], finished)
    assert ended.code == 0 and "nothing was trained" in ended.output and "-t" in ended.output

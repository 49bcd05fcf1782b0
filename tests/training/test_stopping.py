"""Signals, and other ends of a run: what is saved, what is said, and how it goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from taming.atomic_files import sole_user
from taming.checkpoint import read_checkpoint
from taming.errors import Stopped, UserError
from taming.training import run_folder, stopping
from taming.training.cli import main as main_command
from taming.training.stopping import NOTHING, SAVE, TERMINATE, Requests, start_worker
from tests.kit.comparison import differences
from tests.kit.launch import Launcher
from tests.kit.processes import in_two_processes
from tests.kit.resuming import RUN, TIME, VARIABLE, Crops, Moment, moments, run_config
from tests.kit.training import write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, TIME)


@pytest.fixture
def whole(request: Any, uninterrupted: Callable[[str], Path]) -> tuple[str, Path]:
    """A case and its uninterrupted run."""
    return request.param, uninterrupted(request.param) / "whole"


def train(folder: Path, case: str, *arguments: str, **changes: Any) -> Path:
    """Start a case; `changes` are `section__key=value` of its config."""
    config = run_config(case)
    for name, value in changes.items():
        OmegaConf.update(config, name.replace("__", "."), value, force_add=True)
    base = write_config(folder, config)
    main(["--base", base, "-t", "-n", "run", "--no-test", *arguments])
    return Path(RUN)


def go_on(monkeypatch: pytest.MonkeyPatch, *arguments: str, run: str = RUN) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "2022-01-01T00-00-00")
    main(["-r", run, "-t", "True", "--no-test", "True", *arguments])
    return Path(run)


def step(run: Path) -> int:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]


# An epoch has six batches; the transformer adds up the gradients of four, and then of two. A signal
# takes effect once the step, or what is added up, is done.
STOPS = {
    ("vqgan", "on_before_optimizer_step", 8, "SIGTERM"): 8,
    ("vqgan", "on_train_batch_end", 5, "SIGINT"): 5,
    ("vqgan", "on_validation_batch_start", 6, "SIGTERM"): 6,
    ("vqgan", "on_train_epoch_end", 6, "SIGINT"): 6,
    ("vqgan", "on_train_batch_end", 6, "SIGTERM"): 6,
    ("transformer", "on_train_batch_start", 8, "SIGTERM"): 3,
    ("transformer", "on_before_optimizer_step", 12, "SIGINT"): 4,
    ("annealed", "on_before_optimizer_step", 9, "SIGTERM"): 9,
    ("masked", "on_before_optimizer_step", 8, "SIGTERM"): 8,
}
OFTEN = ("on_before_optimizer_step", "on_validation_batch_start")


@pytest.mark.parametrize(
    ("whole", "moment", "steps"),
    [
        pytest.param(case, moment, steps, marks=() if moment[0] in OFTEN else pytest.mark.slow)
        for (case, *moment), steps in STOPS.items()
    ],
    indirect=["whole"],
    ids=str,
)
def test_a_signal_stops_between_steps(
    whole: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: Moment,
    steps: int,
) -> None:
    case, uninterrupted = whole
    monkeypatch.setenv(*next(iter(moments(tuple(moment)).items())))
    number = signal.Signals[moment[2]]
    with pytest.raises(Stopped) as stopped:
        train(tmp_path, case)
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name} at step {steps}" in stopped.value.message
    assert f"-r {RUN} -t" in stopped.value.message
    assert step(Path(RUN)) == steps
    assert differences(uninterrupted, go_on(monkeypatch)) == []


@pytest.mark.parametrize(
    ("whole", "moment", "steps"),
    [
        ("transformer", ("on_train_batch_end", 7, "end"), 3),
        ("transformer", ("on_train_batch_end", 5, "end"), 2),  # of an epoch's last batches
        pytest.param("ema", ("on_train_batch_end", 8, "end"), 3, marks=pytest.mark.slow),
    ],
    indirect=["whole"],
    ids=str,
)
def test_a_run_that_is_ended_completes_its_step(
    whole: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: Moment,
    steps: int,
) -> None:
    case, uninterrupted = whole
    monkeypatch.setenv(*next(iter(moments(moment).items())))
    train(tmp_path, case)
    assert step(Path(RUN)) == steps
    # As Lightning has it, the end of training is validated and tested, wherever it is.
    expected, found = (
        read_checkpoint(run / "checkpoints" / "last.ckpt")
        for run in (uninterrupted, go_on(monkeypatch))
    )
    assert found["global_step"] == expected["global_step"]
    state = found["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in expected["state_dict"].items())


def test_a_run_whose_time_is_over_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, "vqgan", "--max_time", "00:00:00:00")
    assert "nothing was trained, as its max_time was over; logs/" in caplog.text


def test_our_handlers_are_gone_afterwards(tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    train(tmp_path, "vqgan", "--max_epochs", "1")
    assert [signal.getsignal(number) for number in numbers] == before
    assert not stopping.requests.gentle  # what follows training ends at once


def test_the_command_ends_with_the_signals_code(launcher: Launcher, tmp_path: Path) -> None:
    """And a second SIGINT ends it at once."""
    base = write_config(tmp_path, run_config("vqgan"))
    moment = ("on_before_optimizer_step", 8, "SIGINT")
    flags = ["--base", base, "-t", "-n", "run", "--no-test"]
    now = {run_folder._TIME_VARIABLE: TIME}
    first = launcher.run(flags, tmp_path, environment=moments(moment) | now)
    assert first.code == 130 and first.last_line.startswith("stopped by SIGINT at step 8")
    assert step(Path(RUN)) == 8
    second = launcher.run(flags, tmp_path, environment=moments(moment, moment) | now)
    assert second.code == 130 and "stopped by" not in second.output
    last = Path(f"{RUN}_2") / "checkpoints/last.ckpt"  # of step 6, if it was on the disk by then
    assert not last.exists() or step(last.parents[1]) == 6


@pytest.mark.parametrize("whole", ["vqgan"], indirect=True)
def test_a_run_that_never_saved_starts_over_in_its_folder(
    whole: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(*next(iter(moments(("on_train_start", 0, "SIGTERM")).items())))
    with pytest.raises(Stopped) as stopped:
        train(tmp_path, "vqgan")
    assert "at step 0" in stopped.value.message and f"-r {RUN}" in stopped.value.message
    assert not list(Path(RUN).glob("checkpoints/*")) and not stopping.requests.gentle
    run = go_on(monkeypatch)
    assert "stopped before its first save: it starts over" in caplog.text
    assert differences(whole[1], run) == []


@pytest.mark.parametrize("whole", ["vqgan"], indirect=True)
@pytest.mark.parametrize("path", ["{}", "{}/checkpoints", "{}/checkpoints/last.ckpt", ".", "~/run"])
def test_a_finished_run_says_so(
    whole: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[1], run)
    monkeypatch.setenv("HOME", str(tmp_path))
    if path == ".":
        monkeypatch.chdir(run)
    go_on(monkeypatch, run=path.format(run))
    assert f"{tmp_path / 'run'} is finished: " in caplog.text.replace("~", str(tmp_path))
    assert "--max_epochs" in caplog.text
    assert differences(whole[1], run) == []
    assert len(list(run.glob("configs/*"))) == 2


def test_without_t_nothing_is_trained_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = write_config(tmp_path, run_config("vqgan"))
    main(["--base", base, "--max_steps", "2", "data.params.batch_size=2"])
    last = caplog.messages[-1]
    assert re.match(
        r"checked: the config, \d+ items of train, .* [\d,]+ weights of the model", last
    )
    again = f"python main.py --base {base} --max_steps 2 data.params.batch_size=2 -t"
    assert last.endswith(f"nothing was trained: to train, add -t, as in {again}")
    assert not Path("logs").exists()
    run = train(tmp_path, "vqgan", "--max_epochs", "1")
    caplog.clear()
    main(["-r", str(run)])
    assert f"nothing was trained: to train, add -t, as in python main.py -r {run} -t" in caplog.text


# ---------------------------------------------------------------------- runs do not collide


def test_runs_of_one_name_and_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, "vqgan", "--max_steps", "1")
    train(tmp_path, "vqgan", "--max_steps", "2")
    assert (step(Path(RUN)), step(Path(f"{RUN}_2"))) == (1, 2)
    assert run_folder._FOLDER_VARIABLE not in os.environ
    monkeypatch.delenv(run_folder._TIME_VARIABLE)
    train(tmp_path, "vqgan", "--max_steps", "1")
    assert run_folder._TIME_VARIABLE not in os.environ  # the next call has its own time
    assert len(list(Path("logs").iterdir())) == 3


def test_a_run_is_trained_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(tmp_path, "vqgan", "--max_steps", "1")
    with sole_user(run), pytest.raises(UserError, match="another process is writing to .*_run"):
        go_on(monkeypatch, "--max_steps", "2")
    assert step(go_on(monkeypatch, "--max_steps", "2")) == 2


def test_a_file_in_place_of_the_logs_is_said_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any, **__: Any) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("taming.training.cli.instantiate_from_config", build)
    Path("logs").write_text("mine")
    with pytest.raises(UserError, match=r"nothing can be written to logs/.*logs is a file, not a"):
        train(tmp_path, "vqgan")
    assert Path("logs").read_text() == "mine"


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the Trainer refuses"):
        train(tmp_path, "vqgan", "--strategy", "dpp")
    assert not list(Path("logs").glob("*"))


# ---------------------------------------------------------------------- workers


class Deadly(Crops):
    """A dataset whose worker is killed at an item."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(
            tmp_path,
            "vqgan",
            data__params__num_workers=1,
            data__params__train__target="tests.training.test_stopping.Deadly",
        )
    message = str(caught.value)
    assert "a worker of the data loader (process" in message and "memory ran out" in message
    assert "data.params.num_workers" in message and f"-r {RUN} -t" in message


def _work(ready: Any) -> None:
    start_worker(0)
    ready.set()
    time.sleep(60)


def test_workers_leave_signals_to_their_parent_but_can_be_ended() -> None:
    fork = get_context("fork")
    ready = fork.Event()
    worker = fork.Process(target=_work, args=(ready,))
    worker.start()
    assert ready.wait(30) and worker.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
        worker.join(0.3)
        assert worker.is_alive()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == -signal.SIGTERM


def _work_below(number: Any, ready: Any) -> None:
    worker = get_context("fork").Process(target=_work, args=(ready,))
    worker.start()
    number.value = worker.pid
    ready.wait(30)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc").exists(), reason="Linux ends workers, elsewhere torch does")
def test_no_worker_outlives_its_parent() -> None:
    fork = get_context("fork")
    number, ready = fork.Value("i", 0), fork.Event()
    parent = fork.Process(target=_work_below, args=(number, ready))
    parent.start()
    parent.join(60)
    assert parent.exitcode == -signal.SIGKILL
    stat = Path(f"/proc/{number.value}/stat")
    deadline = time.monotonic() + 30
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.05)


# ---------------------------------------------------------------------- several processes


def _agree() -> None:
    """Rank 1 gets a signal after the second step: both are told after the third."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    requests, heard = Requests(), []
    for number in range(5):
        if number == 1 and dist.get_rank() == 1:
            requests.gentle = True
            requests._handle(signal.SIGTERM, None)
        heard.append(requests.agreed(SAVE if number == 3 and dist.get_rank() == 0 else NOTHING))
        if stopping.signal_of(heard[-1]) is not None:
            break
    requests.wait_for_all()
    assert heard == [NOTHING, NOTHING, TERMINATE]
    dist.destroy_process_group()


def test_processes_agree_on_when_to_stop() -> None:
    in_two_processes(_agree)

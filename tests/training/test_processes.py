"""A process of a run that dies is named by those that wait for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest

from taming.errors import Stopped
from taming.training import processes
from taming.training.data_module import DataModuleFromConfig
from taming.training.processes import LoaderWatch, ProcessWatch, _manner
from tests.kit.launch import Launcher

# Starts a process that kills itself, looks after it, and waits for it for ever.
WAITS = """
import subprocess, sys, threading, time
from taming.training import processes
processes._PATIENCE = 1.0
watch = processes.ProcessWatch(before_exit=lambda: print("saved", flush=True))
watch._children = [
    subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]),
    subprocess.Popen(["sleep", "100"]),
]
threading.Thread(target=watch._look, daemon=True).start()
print(watch._children[1].pid, flush=True)
time.sleep(100)
"""


@pytest.fixture
def watch() -> Iterator[ProcessWatch]:
    watch = ProcessWatch(before_exit=lambda: None)
    watch._children = [subprocess.Popen(["sleep", "100"]) for _ in range(2)]
    yield watch
    watch.end_others()
    for child in watch._children:
        child.wait()


def test_the_dead_are_named(watch: ProcessWatch) -> None:
    assert watch.death() is None
    done = subprocess.Popen(["true"])
    done.wait()
    watch._children.insert(0, done)  # one that has ended well
    assert watch.death() is None
    watch._children.remove(done)
    assert watch.explain(RuntimeError("a bug of ours")) is None
    watch._children[1].kill()
    lost = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1234")
    death = watch.explain(lost)
    assert death is not None and death.startswith(f"rank 2 (process {watch._children[1].pid}) was")
    assert "SIGKILL" in death and "memory" in death


def test_a_lost_connection_to_processes_that_torchrun_looks_after_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = ProcessWatch(before_exit=lambda: None)
    monkeypatch.setattr(processes, "_PATIENCE", 0)
    lost = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1234\nmore")
    assert watch.explain(lost) is None  # there is one process
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    said = watch.explain(lost)
    assert said is not None and said.startswith("the connection to another process is lost;")
    assert "Connection closed" in said and "more" not in said
    assert watch.explain(RuntimeError("a bug of ours")) is None


def test_a_process_may_end_when_all_do(watch: ProcessWatch) -> None:
    watch.on_exception(None, None, RuntimeError())  # type: ignore[arg-type]
    assert not watch._over.is_set()
    watch.on_exception(None, None, Stopped(signal.SIGTERM))  # type: ignore[arg-type]
    assert watch._over.is_set()


def test_a_parent_that_is_gone_is_named() -> None:
    watch = ProcessWatch(before_exit=lambda: None)
    watch._parent = 1 << 22
    assert watch.death() == f"rank 0 (process {1 << 22}) has died"


def test_ranks_are_counted_from_the_first_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "take_child_processes", lambda _: [])
    monkeypatch.setattr(processes, "_is_started_by_rank_zero", lambda: False)
    watch = ProcessWatch(before_exit=lambda: None)
    trainer: Any = SimpleNamespace(global_rank=5, local_rank=1)
    watch.setup(trainer, trainer, "fit")
    watch._parent = 1 << 22
    assert watch.death() == f"rank 4 (process {1 << 22}) has died"


def test_what_hangs_is_named_with_the_time_that_it_takes() -> None:
    data: Any = SimpleNamespace(slowest_item=lambda: (12.4, "a.png"), timeout=10)
    assert processes.hang(data).startswith("the loading of a.png hangs, for 12 seconds now")
    data.timeout = 20  # the clock of the loader may be behind
    assert processes.hang(data).startswith("the loading of a.png hangs, for 20 seconds now")


@pytest.mark.parametrize("timed_out", [False, True])
def test_workers_that_hang_are_ended(monkeypatch: pytest.MonkeyPatch, timed_out: bool) -> None:
    workers = [Mock(), Mock()]
    workers[0].kill.side_effect = RuntimeError("torch says that it was killed")
    monkeypatch.setattr(processes.multiprocessing, "active_children", lambda: workers)
    watch, trainer = LoaderWatch(before_exit=lambda: None), Mock()
    text = "DataLoader timed out after 5 seconds" if timed_out else "a bug"
    watch.on_exception(trainer, trainer, RuntimeError(text))
    assert watch._over.is_set()
    assert [worker.kill.call_count for worker in workers] == [timed_out] * 2
    assert workers[1].join.call_args_list == [call(timeout=1)] * timed_out


def test_manners_of_death(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _manner(3) == "has ended with exit code 3"
    assert _manner(-signal.SIGSEGV) == "was ended by SIGSEGV"
    monkeypatch.delattr(signal, "SIGKILL")  # as on Windows
    assert _manner(-9).startswith("was killed (SIGKILL)")


def test_a_process_that_waits_for_the_dead_is_ended(launcher: Launcher, tmp_path: Path) -> None:
    """With a sentence, after it has saved, and with the processes that it has started."""
    (tmp_path / "waits.py").write_text(WAITS)
    ended = launcher.run([], tmp_path, program=str(tmp_path / "waits.py"), limit=60)
    assert ended.code == 2, ended.output
    sleeper = re.search(r"^[0-9]+$", ended.output, re.MULTILINE)
    assert sleeper is not None and "saved" in ended.output.splitlines()
    assert re.search(r"^error: rank 1 \(process ", ended.output, re.MULTILINE)
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(sleeper[0]), 0)
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("local_rank", "started_by_us", "watches"),
    [(0, True, False), (1, True, True), (1, False, False)],
)
def test_a_parent_is_looked_after_if_it_is_the_first_process(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, started_by_us: bool, watches: bool
) -> None:
    started: list[str] = []
    thread = SimpleNamespace(start=lambda: started.append("thread"))
    monkeypatch.setattr(processes.threading, "Thread", lambda **_: thread)
    monkeypatch.setattr(processes, "take_child_processes", lambda _: [])
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    if not started_by_us:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    trainer: Any = SimpleNamespace(global_rank=local_rank, local_rank=local_rank)
    watch = ProcessWatch(before_exit=lambda: None)
    watch.setup(trainer, trainer, "validate")
    assert watch._parent is None
    watch.setup(trainer, trainer, "fit")
    assert watch._parent == (os.getppid() if watches else None)
    assert started == ["thread"] * watches


@pytest.mark.parametrize(("seconds", "ends"), [(4.9, False), (5.0, True), (7.0, True)])
def test_an_item_that_takes_too_long_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, seconds: float, ends: bool
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(processes.os, "_exit", done.append)
    watch = LoaderWatch(before_exit=lambda: done.append("saved"))
    watch._over.set()
    data: Any = SimpleNamespace(slowest_item=lambda: (seconds, "a.png"), timeout=5.0)
    watch._look(data)
    assert done == (["saved", 2] if ends else [])


@pytest.mark.parametrize(
    ("workers", "timeout", "stage", "watched"),
    [(0, 5, "fit", 1), (0, 0, "fit", 0), (1, 5, "fit", 0), (0, 5, "test", 0)],
)
def test_items_are_watched_where_no_worker_loads_them(
    monkeypatch: pytest.MonkeyPatch, workers: int, timeout: float, stage: str, watched: int
) -> None:
    started: list[Any] = []
    thread = SimpleNamespace(start=lambda: started.append(thread))
    monkeypatch.setattr(processes.threading, "Thread", lambda **_: thread)
    watch = LoaderWatch(before_exit=lambda: None)
    data = DataModuleFromConfig(1, num_workers=workers, timeout=timeout)
    trainer: Any = SimpleNamespace(datamodule=data)
    watch.setup(trainer, trainer, stage)
    assert len(started) == watched

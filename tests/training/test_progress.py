"""The bar over a run's steps, and the line about its pace."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from taming.training import progress
from taming.training.cli import main as main_command
from taming.training.progress import Pace, RunProgress, steps_of_run
from tests.kit.training import small_vqgan, write_config
from tests.support import ROOT

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions


class Watch(Callback):
    """Notes the bar's state after every batch, before the bar counts it, and where it began."""

    seen: list[tuple[int, int | None, str]] = []  # noqa: RUF012  # of all instances
    initial = 0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        (bar,) = [one for one in trainer.callbacks if isinstance(one, RunProgress)]  # type: ignore[attr-defined]
        train = bar.train_progress_bar
        self.seen.append((train.n, train.total, train.desc))
        Watch.initial = train.initial


def train(folder: Path, *arguments: str) -> list[tuple[int, int | None, str]]:
    config = small_vqgan()
    config.lightning.trainer.enable_progress_bar = True
    config.lightning.callbacks = {"watch": {"target": f"{__name__}.Watch"}}
    Watch.seen.clear()
    main(["--base", write_config(folder, config), "-t", *arguments])
    return list(Watch.seen)


def test_the_bar_is_over_the_whole_run_also_of_a_resumed_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = train(tmp_path, "--max_epochs", "2", "--max_steps", "5")  # of 3 batches an epoch
    assert [(n, total) for n, total, _ in seen] == [(n, 5) for n in range(5)]
    assert [text[:7] for *_, text in seen] == 3 * ["Epoch 0"] + 2 * ["Epoch 1"]
    shown = capsys.readouterr().out
    assert re.search(r"5/5 \[\d\d:\d\d<", shown) and "train/" in shown and "v_num" not in shown
    said = " ".join(caplog.text.split())
    assert re.search(r"Name Type Params Mode 0 encoder Encoder [\d.]+ K train", said)
    assert "TPU" not in said
    assert re.search(r" [\d,]+ weights, [\d.]+ [KM]iB: [\d,]+ are trained, 0 are not", said)
    [run] = tmp_path.glob("logs/*")
    Watch.seen.clear()
    main(["-r", str(run), "-t", "--max_steps", "-1", "--max_epochs", "3"])
    assert [(n, total) for n, total, _ in Watch.seen] == [(n, 9) for n in range(5, 9)]
    assert Watch.initial == 5  # which the time that remains is not told from


def test_the_last_step_is_shown_whatever_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, shown = RunProgress(refresh_rate=3), list[int]()
    monkeypatch.setattr(bar, "get_metrics", lambda *_: {})
    drawn = SimpleNamespace(disable=False, n=3, total=5, set_postfix=lambda *_, **__: None)
    drawn.update = shown.append
    monkeypatch.setattr(bar, "_train_progress_bar", drawn)
    for step in (3, 4, 5, 6):
        trainer: Any = SimpleNamespace(global_step=step)
        bar.on_train_batch_end(trainer, trainer, None, None, 0)
    assert shown == [2, 3]


def test_its_pace_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "BATCHES_TIMED", 3)
    base = write_config(tmp_path, small_vqgan())
    main(["--base", base, "-t", "--max_steps", "5"])
    (line,) = [r.message for r in caplog.records if r.message.startswith("a step takes about")]
    assert re.search(r"about [\d.]+ s, the 2 steps to come [\d.e-]+ s .*memory: [\d.]+ \w+", line)
    assert "small" not in line and re.search("memory: .* [MG]iB$", line)


def test_steps_to_come_are_told_of_if_there_are_any(caplog: pytest.LogCaptureFixture) -> None:
    trainer: Any = SimpleNamespace(
        num_training_batches=10, accumulate_grad_batches=1, lightning_module=None, max_epochs=-1
    )
    trainer.max_steps, trainer.global_step = 3, 3
    pace = Pace()
    pace._durations = [1.0]
    with caplog.at_level("INFO"):
        pace._say(trainer, progress.torch.device("cpu"))
    assert re.fullmatch(r"a step takes about 1 s; memory: .*", caplog.messages[-1])


@pytest.mark.parametrize(
    ("limits", "accumulate", "steps"),
    [
        ({"max_steps": 7, "max_epochs": 2}, 1, 7),
        ({"max_steps": 70, "max_epochs": 2}, 1, 20),
        ({"max_steps": -1, "max_epochs": 2}, 4, 6),
        ({"max_steps": -1, "max_epochs": -1}, 1, None),
        ({"max_steps": 0, "max_epochs": 2}, 1, 0),
        ({"max_steps": 70, "max_epochs": 0}, 1, 0),
    ],
)
def test_steps_of_a_run(limits: dict[str, int], accumulate: int, steps: int | None) -> None:
    class Trainer:
        num_training_batches, accumulate_grad_batches, lightning_module = 10, accumulate, None
        max_steps, max_epochs = limits["max_steps"], limits["max_epochs"]

    assert steps_of_run(Trainer()) == steps  # type: ignore[arg-type]


def test_pictures_and_the_first_batch_are_left_out_of_a_pace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Batches of 2 seconds, of which every other one is followed by 30 seconds of pictures.

    What takes longer than a night on a CPU is told of smaller configs.
    """
    times = iter([0.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    pace = Pace()
    pace._durations = [99.0, 32.0, 2.0, 32.0, 2.0, 2.0, 2.0, 32.0]

    class Trainer:
        num_training_batches, accumulate_grad_batches, lightning_module = 10, 3, None
        max_steps, max_epochs, global_step = 109, -1, 9

    pace.on_train_start(None, None)  # type: ignore[arg-type]

    class Model:
        device = progress.torch.device("cpu")

    with caplog.at_level("INFO"):
        pace.on_train_batch_end(Trainer(), Model(), None, None, 8)  # type: ignore[arg-type]
        assert "about 6 s, the 100 steps to come 10 min" in caplog.text
        assert progress.SMALLER not in caplog.text
        for Trainer.max_steps in (9 + 7199, 9 + 7201):  # of 6 seconds: 12 hours, nearly
            assert progress.SMALLER not in caplog.text
            pace._say(Trainer(), Model.device)  # type: ignore[arg-type]
        assert caplog.text.strip().endswith(progress.SMALLER)
        caplog.clear()
        pace._say(Trainer(), progress.torch.device("mps"))  # type: ignore[arg-type]
        assert progress.SMALLER not in caplog.text
        pace._say(Trainer(), Model.device)  # type: ignore[arg-type]
    assert caplog.text.strip().endswith(progress.SMALLER)


def test_a_first_batch_that_compiles_is_no_pace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer: Any = SimpleNamespace(
        num_training_batches=10, accumulate_grad_batches=1, lightning_module=None, max_epochs=-1
    )
    trainer.max_steps, trainer.global_step, trainer.device = 3, 3, progress.torch.device("cpu")
    for durations, seconds in (([42.0] + 9 * [0.5], "0.5 s"), ([42.0, 30.0, 12.0], "12 s")):
        times = [sum(durations[:count]) for count in range(len(durations) + 1)]
        clock, pace = iter(times), Pace()
        monkeypatch.setattr(progress.time, "monotonic", lambda clock=clock: next(clock))
        pace.on_train_start(trainer, trainer)
        with caplog.at_level("INFO"):
            for number in range(len(durations)):
                assert "a step takes" not in caplog.text
                pace.on_train_batch_end(trainer, trainer, None, None, number)
        assert f"a step takes about {seconds};" in caplog.text
        caplog.clear()


def test_each_batch_is_timed_from_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 3.0, 4.0, 8.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    pace, trainer = Pace(), SimpleNamespace()
    pace.on_train_start(trainer, trainer)  # type: ignore[arg-type]
    for number in range(3):
        pace.on_train_batch_end(trainer, trainer, None, None, number)  # type: ignore[arg-type]
    assert pace._durations == [2, 1, 4]


def test_small_configs_are_where_it_is_said() -> None:
    for name in re.findall(r"\S+\.(?:yaml|md)", progress.SMALLER):
        assert (ROOT / name).is_file()

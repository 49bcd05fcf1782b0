"""A run that is stopped anywhere and goes on ends bit for bit as one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taming.training import run_folder
from taming.training.cli import main as main_command
from tests.kit.resuming import MODELS, Moment, differences, moments, run_config
from tests.kit.training import write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions

RUN = "logs/2021-04-03T19-39-50_run"

USR1 = [("on_train_batch_start", 3, "usr1"), ("on_before_optimizer_step", 8, "usr1")]

# What a kill leaves at these moments; before each of them, something has been saved. An epoch has
# six batches; gradients of four are added up where a case does that: 4, 6, 10, 12, ...
MOMENTS: list[Moment] = [
    ("on_train_batch_start", 5, "after_a_signal"),  # saved after batch 3, or 4
    ("on_validation_batch_start", 6, "in_validation"),
    ("on_train_epoch_end", 6, "before_the_save_of_an_epoch"),
    ("on_train_epoch_start", 6, "after_the_save_of_an_epoch"),
    ("on_train_batch_end", 7, "in_the_second_epoch"),
    ("on_train_batch_start", 11, "after_another_signal"),  # saved after batch 8, or 10
    ("on_train_epoch_start", 12, "after_the_second_epoch"),
]


@pytest.fixture(autouse=True)
def a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "2022-01-01T00-00-00")


@pytest.fixture(scope="module")
def whole(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a case with its uninterrupted run, logs/whole, and copies of moments of it."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in moments(*USR1, *MOMENTS).items():
            patch.setenv(name, value)
        patch.setenv(run_folder._TIME_VARIABLE, "2021-04-03T19-39-50")
        base = write_config(folder, run_config(request.param))
        main(["--base", base, "-t", "-n", "run", "--no-test"])
    (folder / RUN).rename(folder / "logs" / "whole")
    return folder / "logs"


@pytest.mark.parametrize("whole", MODELS, indirect=True)
@pytest.mark.parametrize("copy", [name for _, _, name in MOMENTS])
def test_a_killed_run_ends_as_if_it_had_not_been(whole: Path, copy: str) -> None:
    run = whole.parent / RUN
    (whole / copy).rename(run)  # where it was killed
    main(["-r", str(run), "-t", "--no-test"])
    run.rename(whole / copy)
    assert differences(whole / "whole", whole / copy) == []

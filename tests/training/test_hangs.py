"""A loader that hangs: the run ends in time, and names the file."""

from __future__ import annotations

import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from taming.data.readings import Readings
from taming.data.seeding import SeededDataset
from taming.errors import UserError
from taming.training.cli import main as main_command
from tests.kit.launch import Launcher
from tests.kit.resuming import Crops, run_config
from tests.kit.training import write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions


class Hanging(Crops):
    """A dataset whose disk stops answering in an item."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 7:
            with open(__file__):
                time.sleep(600)
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_file_is_named(launcher: Launcher, tmp_path: Path, workers: int) -> None:
    config = run_config("vqgan")
    OmegaConf.update(config, "data.params.train.target", "tests.training.test_hangs.Hanging")
    config.data.params |= {"num_workers": workers, "timeout": 3}
    base = write_config(tmp_path, config)
    ended = launcher.run(["--base", base, "-t", "-n", "run", "--no-test"], tmp_path)
    assert ended.code == 2 and not ended.traceback, ended.output
    assert f"error: the loading of item 7, {__file__} hangs" in ended.last_line
    assert "data.params.timeout" in ended.last_line


class Refusing(Crops):
    """A dataset whose disk has an error in an item."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 7:
            raise OSError(5, "Input/output error", "seven.png")
        return super().__getitem__(index)


def test_an_error_of_the_disk_in_a_worker_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_config("vqgan")
    OmegaConf.update(config, "data.params.train.target", "tests.training.test_hangs.Refusing")
    config.data.params.num_workers = 1
    with pytest.raises(UserError, match="worker .* Input/output error: 'seven.png'.* go on"):
        main(["--base", write_config(tmp_path, config), "-t", "-n", "run", "--no-test"])


def test_items_that_end_meanwhile_do_not_hang(request: pytest.FixtureRequest) -> None:
    """A watch asks at any moment, from another thread."""
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)
    readings, over = Readings(0), threading.Event()
    seen: list[float] = []

    def watch() -> None:
        while not over.is_set():
            seen.append((readings.longest() or (0.0, ""))[0])

    thread = threading.Thread(target=watch)
    thread.start()
    for index in range(20000):
        with readings.item(index):
            pass
    over.set()
    thread.join()
    assert len(seen) > 100 and max(seen) < 60


def test_readings_name_what_is_open_within_an_item(tmp_path: Path) -> None:
    class Files:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> str:
            (tmp_path / "a.txt").read_text()
            found = readings.longest()
            assert found is not None and found[0] >= 0
            return found[1]

    (tmp_path / "a.txt").write_text("x")
    readings = Readings(0)
    assert readings.longest() is None
    text = SeededDataset(Files(), readings=readings)[0]  # type: ignore[arg-type]
    assert text == f"item 0, {tmp_path / 'a.txt'}"
    (tmp_path / "a.txt").read_text()
    assert readings.longest() is None

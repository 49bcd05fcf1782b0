from __future__ import annotations

import json
import os
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.evaluate_fid import main
from taming.evaluation.cache import Cache, Timer, cache_folder, key_of
from taming.evaluation.results import flattened
from tests.evaluation.images import write_images

STATE = {"sums": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "bc"])}


def test_states_come_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "below")
    assert cache.load("key") is None
    cache.save("key", STATE)
    found = cache.load("key")
    assert found is not None
    for name, array in STATE.items():
        np.testing.assert_array_equal(found[name], array)
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["key.npz"]
    assert Cache(tmp_path / "below", enabled=False).load("key") is None


@pytest.mark.parametrize("left", [0, 100, -10])
def test_damaged_files_are_no_states(
    tmp_path: Path, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path)
    cache.save("key", STATE)
    content = (tmp_path / "key.npz").read_bytes()
    (tmp_path / "key.npz").write_bytes(content[:left])
    assert cache.load("key") is None
    assert "key.npz is damaged" in caplog.text


def test_a_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "below")
    cache.save("key", STATE)
    assert "cannot be written" in caplog.text
    assert cache.parts("key") == []


def test_parts_of_processes(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for rank in range(3):
        cache.save_part("key", rank, {"rank": np.array(rank)})
    cache.save_part("other", 0, {"rank": np.array(7)})
    assert [int(part["rank"]) for part in cache.parts("key")] == [0, 1, 2]
    cache.forget_parts("key", but=1)
    assert [int(part["rank"]) for part in cache.parts("key")] == [1]
    cache.forget_parts("key")
    assert not cache.parts("key")
    assert len(cache.parts("other")) == 1
    assert not Cache(tmp_path, enabled=False).parts("other")


def test_folder_and_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "taming" / "evaluation"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "taming" / "evaluation"
    assert key_of(a=1, b=[2]) == key_of(b=[2], a=1) != key_of(a=1, b=[3])


def test_saves_that_take_long_are_rare() -> None:
    timer = Timer(every=30)
    assert not timer.due()
    timer.saved(0.1)
    assert timer.wait == 30
    timer.saved(10)
    assert timer.wait == 200
    always = Timer(every=0)
    always.saved(10)
    assert always.due()


def evaluate(folder: Path, log: str, kill_at: int | None = None) -> int | None:
    """Exit code of scripts/evaluate_fid.py in a process of its own, which may kill itself."""
    flags = ["--extractor", "tests.evaluation.images:FatalExtractor", "--metrics", "fid,isc,kid"]
    flags += ["--isc_splits", "2", "--kid_subset_size", "10", "--batch_size", "4"]
    flags += ["--save_every", "0", "-o", str(folder / log.removesuffix(".txt"))]
    flags += ["--device", "cpu"]

    def child() -> None:
        torch.set_num_threads(1)  # those of the parent are not here
        os.environ |= {"TINY_LOG": str(folder / log), "TINY_KILL_AT": str(kill_at or 10**9)}
        main([str(folder / "a"), str(folder / "b"), *flags])

    process = get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    return process.exitcode


def metrics(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())["metrics"]


def images_seen(log: Path) -> int:
    return sum(map(int, log.read_text().split()))


def test_an_evaluation_that_was_killed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "a", 20)
    write_images(tmp_path / "b", 24, seed=100)
    # In the middle of the reference, which comes first, then in the middle of the samples.
    assert evaluate(tmp_path, "first.txt", kill_at=13) == -signal.SIGKILL
    assert evaluate(tmp_path, "second.txt", kill_at=18) == -signal.SIGKILL
    assert evaluate(tmp_path, "third.txt") == 0
    assert images_seen(tmp_path / "first.txt") == 16  # the last 4 of them are lost
    assert images_seen(tmp_path / "second.txt") == 12 + 8
    assert images_seen(tmp_path / "third.txt") == 20 - 4
    cached = sorted((tmp_path / "cache" / "taming" / "evaluation").iterdir())
    assert len(cached) == 3
    assert not [path for path in cached if "partial" in path.name]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert evaluate(tmp_path, "alone.txt") == 0
    assert images_seen(tmp_path / "alone.txt") == 44
    for name, value in flattened(metrics(tmp_path / "alone")):
        assert dict(flattened(metrics(tmp_path / "third")))[name] == pytest.approx(value, rel=1e-6)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from taming.evaluation.cache import Cache, Timer, cache_folder
from taming.evaluation.sources.images import key_of

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
    assert "cannot write" in caplog.text and "nothing is kept" in caplog.text
    assert cache.parts("key") == []


def test_parts_of_processes(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for rank in range(3):
        cache.save_part("key", rank, {"rank": np.array(rank)})
    cache.save_part("other", 0, {"rank": np.array(7)})
    assert [int(part["rank"]) for part in cache.parts("key")] == [0, 1, 2]
    cache.delete_parts("key", but=1)
    assert [int(part["rank"]) for part in cache.parts("key")] == [1]
    cache.delete_parts("key")
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

"""Downloads against a server that drops, truncates and lies."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from taming.atomic_files import machine_lock, one_at_a_time
from taming.downloads import Patience, fetch, file_hash
from taming.errors import UserError
from tests.web import Site, serve

DATA = bytes(range(256)) * 400
QUICK = Patience(tries=3, wait=0.0)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site(files={"/a": DATA})) as running:
        yield running


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_whole_file_is_placed(site: Site, tmp_path: Path) -> None:
    path = fetch(f"{site.url}/a", tmp_path / "deep" / "a", size=len(DATA), patience=QUICK)
    assert path.read_bytes() == DATA and names(path.parent) == ["a"]
    assert file_hash(path) == hashlib.sha256(DATA).hexdigest()


def test_processes_that_want_a_file_at_once_fetch_it_once(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "file"
    with ThreadPoolExecutor(1) as pool:
        with one_at_a_time(machine_lock(str(target))):
            waiting = pool.submit(fetch, f"{site.url}/nothing", target)
            assert not wait([waiting], timeout=0.1).done
            target.write_bytes(b"whole")
        assert waiting.result() == target and target.read_bytes() == b"whole"


def test_dropped_connections_are_continued(site: Site, tmp_path: Path) -> None:
    site.drops = [10_000, 20_000, 1, 30_000]
    path = fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK)
    assert path.read_bytes() == DATA and names(tmp_path) == ["a"]
    starts = [asked for _, asked in site.requests]
    assert starts == [None, "bytes=10000-", "bytes=30000-", "bytes=30001-", "bytes=60001-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(site: Site, tmp_path: Path) -> None:
    site.drops = [50_000, 0, 0, 0]
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(UserError, match="only 50,000 of 102,400.*50,000 bytes are kept"):
        fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == b"old"
    fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == DATA and names(tmp_path) == ["a"]
    assert site.requests[-1][1] == "bytes=50000-"


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_another_version_starts_anew(site: Site, tmp_path: Path, header: str) -> None:
    site.drops, site.version_header = [50_000, 0, 0, 0], header
    with pytest.raises(UserError):
        fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK)
    site.files["/a"], site.version = DATA[::-1], '"2"'
    assert fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK).read_bytes() == DATA[::-1]


def test_versions_that_may_differ_in_bytes_are_not_remembered(site: Site, tmp_path: Path) -> None:
    site.drops, site.version = [50_000, 0, 0], 'W/"1"'
    with pytest.raises(UserError):
        fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK)
    assert names(tmp_path) == ["a.part"]


def test_waits_double(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    site.codes = [503] * 9
    with pytest.raises(UserError, match="503"):
        fetch(f"{site.url}/a", tmp_path / "a")
    assert waits == [1, 2, 4, 8]


def test_servers_that_cannot_continue_start_anew(site: Site, tmp_path: Path) -> None:
    site.ranges, site.drops = False, [50_000]
    assert fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK).read_bytes() == DATA


@pytest.mark.parametrize("shift", [5, -5])
def test_a_lie_about_the_position_is_noticed(site: Site, tmp_path: Path, shift: int) -> None:
    site.shift, site.drops = shift, [50_000]
    assert fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK).read_bytes() == DATA
    assert [asked for _, asked in site.requests] == [None, "bytes=50000-", None]


def test_a_complete_part_is_taken(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(DATA)
    assert fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK).read_bytes() == DATA
    (tmp_path / "b.part").write_bytes(DATA + b"more")
    assert fetch(f"{site.url}/a", tmp_path / "b", patience=QUICK).read_bytes() == DATA


def test_nothing_is_left_of_what_never_began(site: Site, tmp_path: Path) -> None:
    site.drops = [0, 0, 0]
    with pytest.raises(UserError, match="only 0 of 102,400 bytes arrived$"):
        fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK)
    assert names(tmp_path) == []


def test_a_wrong_size_is_not_kept(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sent 102,400 bytes instead of 7"):
        fetch(f"{site.url}/a", tmp_path / "a", size=7, patience=QUICK)
    assert names(tmp_path) == []


def test_trouble_of_the_server_passes_but_a_dead_link_does_not(site: Site, tmp_path: Path) -> None:
    site.codes = [503, 429]
    assert fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK).read_bytes() == DATA
    count = len(site.requests)
    with pytest.raises(UserError, match="answers 404.*out of date"):
        fetch(f"{site.url}/gone", tmp_path / "b", patience=QUICK)
    assert len(site.requests) == count + 1 and names(tmp_path) == ["a"]


def test_no_server_at_all(tmp_path: Path) -> None:
    with serve(Site()) as site:
        pass
    with pytest.raises(UserError, match="could not download .*refused"):
        fetch(f"{site.url}/a", tmp_path / "a", patience=QUICK)
    with pytest.raises(UserError, match="could not download nonsense"):
        fetch("nonsense", tmp_path / "a", patience=QUICK)
    assert os.listdir(tmp_path) == []

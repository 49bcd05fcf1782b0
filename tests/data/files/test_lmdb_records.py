from __future__ import annotations

import io
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import multiprocessing

from taming.data.files import lmdb_records
from taming.data.files.lmdb_records import FILE, read_record, record_paths, write_records
from taming.data.files.tar_members import opened, read_bytes
from taming.errors import UserError

# Values that lie in the tree's pages, and values that have pages of their own; keys of any bytes.
RECORDS = {
    f"{number:04}": bytes([number % 256]) * (40 + 300 * (number % 30)) for number in range(900)
}
RECORDS |= {"a/b c::%\n.webp": b"1", "ß": b"2"}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    folder = tmp_path / "some_lmdb"
    folder.mkdir()
    write_records(folder / FILE, RECORDS)
    return folder


def values(paths: object) -> dict[str, bytes]:
    return {path: read_bytes(path) for path in paths}  # type: ignore[attr-defined]


def test_every_record_has_a_path_that_can_be_read(database: Path) -> None:
    paths = record_paths(database, "X")
    assert len(set(paths)) == len(RECORDS)
    assert sorted(values(paths).values()) == sorted(RECORDS.values())
    assert read_bytes(f"{database}/{FILE}::0007.webp") == RECORDS["0007"]
    stream = opened(paths[0])
    assert isinstance(stream, io.BytesIO) and stream.read() == RECORDS["0000"]
    assert sorted(os.listdir(database)) == [FILE]  # nothing is written into it, no lock either
    with pytest.raises(OSError, match="no such record"):
        read_record(f"{database}/{FILE}::none.webp")


def test_keys_are_listed_once(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list(record_paths(database, "X"))
    scan = lmdb_records._scan
    monkeypatch.setattr(lmdb_records, "_scan", lambda *_: pytest.fail("scanned again"))
    assert list(record_paths(database, "X")) == first
    monkeypatch.setattr(lmdb_records, "_scan", scan)
    keys = tmp_path / "some_lmdb.keys"
    complete = keys.read_bytes()
    keys.write_bytes(complete[:-60])  # cut short
    assert list(record_paths(database, "X")) == first and keys.read_bytes() == complete
    write_records(database / FILE, {"other": b"3"})
    lmdb_records.close_databases()
    assert values(record_paths(database, "X")) == {f"{database}/{FILE}::other.webp": b"3"}


def test_keys_are_listed_in_the_cache_where_the_folder_is_read_only(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "some_lmdb.keys").mkdir()  # cannot be written, also not by root
    first = list(record_paths(database, "X"))
    [keys] = (tmp_path / "cache/taming/lmdb").iterdir()
    assert len(keys.read_text().splitlines()) == 1 + len(RECORDS)
    other = tmp_path / "other" / database.name  # whose keys are beside these
    (tmp_path / "other" / keys.name.partition("-")[2]).mkdir(parents=True)
    other.mkdir()
    write_records(other / FILE, {"a": b"1"})
    assert len(record_paths(other, "X")) == 1 and len(list(keys.parent.iterdir())) == 2
    monkeypatch.setattr(lmdb_records, "_scan", lambda *_: pytest.fail("scanned again"))
    assert list(record_paths(database, "X")) == first


def _send_values(queue: object, paths: object) -> None:
    try:
        queue.put(values(paths))  # type: ignore[attr-defined]
    except Exception as error:
        queue.put(error)  # type: ignore[attr-defined]


def test_forked_processes_and_threads_read_the_same(database: Path) -> None:
    paths = record_paths(database, "X")
    expected = values(paths)
    mine = lmdb_records._environment(f"{database}/{FILE}")
    with ThreadPoolExecutor(8) as pool:
        assert dict(zip(paths, pool.map(read_bytes, paths), strict=True)) == expected
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    children = [context.Process(target=_send_values, args=(queue, paths)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(), queue.get()] == [expected, expected]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert lmdb_records._environment(f"{database}/{FILE}") is mine
    assert values(pickle.loads(pickle.dumps(paths))) == expected  # as spawned workers get them


def zero_a_leaf(content: bytearray) -> None:
    """The last page of the tree's lowest level, whose flags are 2."""
    starts = range(0, len(content), 4096)
    leaf = [at for at in starts if struct.unpack_from("<QHH", content, at) == (at // 4096, 0, 2)][
        -1
    ]
    content[leaf : leaf + 4096] = bytes(4096)


def circle(content: bytearray) -> None:
    """Let all branches lead to themselves."""
    for at in range(0, len(content), 4096):
        number, _, flags, end = struct.unpack_from("<QHHH", content, at)
        if number == at // 4096 and flags == 1:
            for place in struct.unpack_from(f"<{(end - 16) // 2}H", content, at + 16):
                struct.pack_into("<HHH", content, at + place, number, 0, 0)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda content: content.clear(), "it is empty"),
        (lambda content: content.__setitem__(slice(None), b"text" * 3000), "not an LMDB file"),
        (lambda content: content.__delitem__(slice(50_000, None)), "it is cut short: 50,000 of"),
        (lambda content: content.__delitem__(slice(-4096, None)), "it is cut short"),  # a page
        (zero_a_leaf, "it is damaged: page .* is not what it should be"),
        (circle, "in a circle"),
    ],
)
def test_damage_is_a_sentence(database: Path, damage: object, sentence: str) -> None:
    content = bytearray((database / FILE).read_bytes())
    damage(content)  # type: ignore[operator]
    (database / FILE).write_bytes(content)
    with pytest.raises(UserError, match=f"X: the LMDB database .*{sentence}.*; unpack"):
        record_paths(database, "X")


def test_absent_and_empty_databases(database: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"X: the LMDB database .*none/data.mdb cannot be read"):
        record_paths(tmp_path / "none", "X")
    write_records(database / FILE, {})
    with pytest.raises(UserError, match="it has no records"):
        record_paths(database, "X")


def test_without_the_package(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(UserError, match=r"run: pip install -e '.\[lsun\]'"):
        record_paths(database, "X")

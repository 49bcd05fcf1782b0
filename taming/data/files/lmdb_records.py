"""Records of LMDB databases, addressed as paths: `bedroom_train_lmdb/data.mdb::KEY.webp`.

Such paths can be read wherever those of files can (`tar_members.read_bytes`). A database is opened
once in each process that reads from it, so that forked and spawned workers share none.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes, unquote_to_bytes
from zlib import crc32

from tqdm import tqdm

from taming.atomic_files import atomic_path, user_cache
from taming.data.columns import StringTable
from taming.data.files.lmdb_pages import check_tree
from taming.errors import UserError, reason_of
from taming.shipped import extra
from taming.user_files import file_version, regular

if TYPE_CHECKING:
    import lmdb

FILE = "data.mdb"  # of a database's folder
MARK = f"{FILE}::"
# Of every record, as Pillow looks at the content anyway; shards name their members by it.
ENDING = ".webp"
# LMDB refuses to open a database twice in a process.
_databases: dict[str, lmdb.Environment] = {}  # by file
_opening = threading.Lock()


def is_record(path: str) -> bool:
    """Whether `path` is inside an LMDB database."""
    return MARK in path


def read_record(path: str) -> bytes:
    """The value of a record; raises OSError, and `UserError` if `lmdb` is not installed."""
    file, _, name = path.rpartition("::")
    key = unquote_to_bytes(name.removesuffix(ENDING))
    with _damage_named(file), _environment(file).begin() as transaction:
        value = transaction.get(key)
    if value is None:
        raise OSError("the database has no such record")
    return bytes(value)


def record_paths(folder: str | Path, dataset: str) -> StringTable:
    """The paths of all records of a database, in the order of their keys.

    The keys are listed once, in `<folder>.keys`, or in the user's cache where that cannot be
    written: walking through a few million of them takes minutes on a network disk.

    Args:
        folder: which holds `data.mdb`.
        dataset: its name, for error messages.

    Raises:
        UserError: if there is no database, it is damaged or empty, or `lmdb` is not installed.
    """
    file = os.path.join(folder, FILE)
    try:
        with _damage_named(file):
            version = "{} {}".format(*file_version(file))
            _environment(file)  # also where its keys are known: refused now, not in a worker
    except OSError as error:
        raise _unreadable(dataset, file, error) from None
    places = _key_files(Path(folder))
    for place in places:
        if (known := _read_keys(place, file, version)) is not None:
            return known
    try:
        return _scan(file, places, version)
    except OSError as error:
        raise _unreadable(dataset, file, error) from None


def write_records(file: Path, records: Mapping[str, bytes]) -> None:
    """Write a database anew, with some megabytes of records."""
    with atomic_path(file) as partial:
        database = _library().open(str(partial), subdir=False, lock=False, map_size=2**30)
        with database.begin(write=True) as transaction:
            for key, value in records.items():
                transaction.put(key.encode(), value)
        database.close()


def _unreadable(dataset: str, file: str, error: OSError) -> UserError:
    return UserError(
        f"{dataset}: the LMDB database {file} cannot be read ({reason_of(error)}); unpack its "
        "archive anew"
    )


def _key_files(folder: Path) -> tuple[Path, Path]:
    """Where the keys of a database may be listed."""
    real = os.path.realpath(folder)
    own = f"{crc32(os.fsencode(real)):08x}-{folder.name}.keys"
    return folder.with_name(f"{folder.name}.keys"), user_cache() / "taming" / "lmdb" / own


def _read_keys(place: Path, file: str, version: str) -> StringTable | None:
    """The records that a list of keys names; None if it is absent, of another state, or damaged."""
    try:
        with open(regular(place), encoding="ascii") as lines:
            same, _, count = lines.readline().strip().rpartition(" ")
            if same != version:
                return None
            table = StringTable(f"{file}::{line.rstrip()}{ENDING}" for line in lines)
    except (OSError, ValueError):
        return None
    return table if str(len(table)) == count else None


def _scan(file: str, places: tuple[Path, ...], version: str) -> StringTable:
    """All records from the database itself; their keys are listed in the first place that can be
    written."""
    check_tree(file)
    with _damage_named(file):
        table = StringTable(f"{file}::{name}{ENDING}" for name in _names(file))
    if not len(table):
        raise OSError("it has no records")
    for place in places:
        with contextlib.suppress(OSError, UserError):
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(place) as partial, open(partial, "w", encoding="ascii") as lines:
                lines.write(f"{version} {len(table)}\n")
                start, end = len(file) + 2, -len(ENDING)
                lines.writelines(f"{path[start:end]}\n" for path in table)
            break
    return table


def _names(file: str) -> Iterator[str]:
    environment = _environment(file)
    total = environment.stat()["entries"]
    with environment.begin() as transaction, transaction.cursor() as cursor:
        keys = cursor.iternext(keys=True, values=False)
        label = f"listing the keys of {Path(file).parent.name}"
        for key in tqdm(keys, label, total, unit=" keys", delay=2, disable=None, leave=False):
            yield quote_from_bytes(key, safe="")


def _environment(file: str) -> lmdb.Environment:
    real = os.path.realpath(file)
    with _opening:
        if real not in _databases:
            _databases[real] = _open(real)
        return _databases[real]


def close_databases() -> None:
    """Close all databases of this process; they are opened anew when records are read."""
    while _databases:
        _databases.popitem()[1].close()


def _open(file: str) -> lmdb.Environment:
    """A database for reading; nothing is written beside it, as others may own its folder."""
    if not os.path.getsize(regular(file)):
        raise OSError("it is empty (0 bytes)")
    environment: lmdb.Environment = _library().open(
        file, subdir=False, readonly=True, lock=False, readahead=False, max_spare_txns=16
    )
    # What lies beyond the end of the file would not be an error, but the end of the process.
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if os.path.getsize(file) < needed:
        environment.close()
        raise OSError(f"it is cut short: {os.path.getsize(file):,} of {needed:,} bytes")
    return environment


def _close_inherited() -> None:
    """In a forked process: those of its parent cannot be used, and would be in the way of its own.

    Also a lock that another thread of the parent held would never be given back.
    """
    global _opening  # noqa: PLW0603  # one per process
    _opening = threading.Lock()
    close_databases()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_inherited)


def _library() -> ModuleType:
    try:
        import lmdb
    except ImportError:
        raise UserError(
            f"LMDB databases are read with lmdb, which is not installed; run: {extra('lsun')}"
        ) from None
    return lmdb


@contextlib.contextmanager
def _damage_named(file: str) -> Iterator[None]:
    """Turn errors of LMDB into OSErrors, without the path."""
    library = _library()
    try:
        yield
    except library.Error as error:
        raise OSError(str(error).removeprefix(f"{os.path.realpath(file)}: ")) from None

"""Files that are either complete or not there, however their writing ends; folders of one process.

A file is written under a temporary name, `.NAME.HOST-PROCESS-NUMBER.partial`, beside its own. What
a process that was killed leaves behind is removed by `remove_leftovers`.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from taming.errors import UserError, is_full, reason_of

_NUMBERS = itertools.count()
# Those of older versions have no host and no number.
_PARTIAL = re.compile(r"\..+\.(?:([0-9a-f]{8})-)?(\d+)(?:-\d+)?\.partial")
_LONGEST = 255  # bytes of a name
# A file of another machine, whose processes cannot be seen, is left over if it has not grown.
_ABANDONED_AFTER = 3600.0
# Of Windows: PROCESS_QUERY_LIMITED_INFORMATION, ERROR_ACCESS_DENIED, and the code of what runs.
_MAY_ASK, _DENIED, _STILL_ACTIVE = 0x1000, 5, 259


@contextmanager
def atomic_path(path: str | Path, *, durable: bool = False, advice: str = "") -> Iterator[Path]:
    """A temporary path beside `path`; what is written to it replaces `path` at the end.

    If the block raises, `path` stays as it was and the temporary file is removed. Folders on the
    way to `path` are made.

    Args:
        durable: force the content to the disk before it replaces `path` (for checkpoints: a power
            cut then leaves the old file or the new one, not an empty one).
        advice: what to do if writing fails, for the end of the error's sentence.

    Raises:
        UserError: if the file cannot be written, for example on a full disk.
    """
    path = Path(path)
    if "\0" in str(path):
        raise UserError(f"cannot write {str(path)!r}: names of files have no null character")
    if not path.name:
        raise UserError(f"cannot write {str(path)!r}: that is a folder; name a file in it")
    if path.exists() and not path.is_file():  # a device would be replaced by a file
        kind = "folder; name a file in it" if path.is_dir() else "device; name a file"
        raise UserError(f"cannot write {str(path)!r}: that is a {kind}")
    partial = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if durable:
            flush_to_disk(partial)
        os.replace(partial, path)
        if durable:
            flush_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        ending = f"; {advice}" if advice else ""
        raise UserError(f"cannot write {path} ({reason_of(error)}){ending}") from error
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other process or thread uses.

    It is in the same folder, as only a rename within one file system is atomic; of a long name, it
    has as much as file systems take.
    """
    end = f".{_host()}-{os.getpid()}-{next(_NUMBERS)}.partial"
    room = _LONGEST - 1 - len(os.fsencode(end))
    return path.with_name(f".{os.fsencode(path.name)[:room].decode('utf-8', 'ignore')}{end}")


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove, below `folder`, temporary files of processes that are no more; returns their paths.

    The caller must not have begun to write: files that bear its own number are of a process that
    had it before, as the first process of a container always has the same.
    """
    removed = []
    for path in folder.rglob(".*.partial"):
        match = _PARTIAL.fullmatch(path.name)
        if match and _is_left_over(path, match[1], int(match[2])):
            with suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed


def _is_left_over(path: Path, host: str | None, process: int) -> bool:
    if host in (None, _host()):
        return process == os.getpid() or not is_running(process)
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > _ABANDONED_AFTER
    return False


def is_running(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    if sys.platform == "win32":  # where os.kill sends Ctrl-C, or ends the process
        return _runs_on_windows(process)
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _runs_on_windows(process: int) -> bool:
    """`is_running`, by Windows' own functions."""
    if not 0 < process < 2**32:
        return False
    library: Any = ctypes
    kernel = library.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = ctypes.c_void_p  # an int would cut it
    handle = kernel.OpenProcess(_MAY_ASK, False, process)
    if not handle:  # another user's may not be asked
        return bool(library.get_last_error() == _DENIED)
    code = ctypes.c_ulong()
    told = kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
    kernel.CloseHandle(ctypes.c_void_p(handle))
    return not told or code.value == _STILL_ACTIVE


def user_cache() -> Path:
    """`$XDG_CACHE_HOME`, or `~/.cache`; the environment is asked each time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())


def check_place(folder: Path, advice: str = "") -> None:
    """Before work begins: check that files can be written to a folder, which need not exist yet.

    Raises:
        UserError: if they cannot; with what to do, if that is given.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    reason = ""
    if not existing.is_dir():
        reason = f"{existing} is a file, not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"{existing} is write-protected"
    elif (usage := shutil.disk_usage(existing)).total and not usage.free:
        reason = "its disk is full"
    else:
        reason = _refusal_of(existing)
    if reason:
        ending = f"; {advice}" if advice else ""
        raise UserError(f"nothing can be written to {folder}, as {reason}{ending}")


def _refusal_of(folder: Path) -> str:
    """What the system says if a file is made in a folder; empty if one can be made."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        full = "its disk is full" if is_full(error) else ""
        return full or f"no files can be made in {folder} ({reason_of(error)})"


def make_new_folder(path: Path) -> Path:
    """Make a folder that nobody else has made: `path`, or with `_2`, `_3` ... behind its name.

    Raises:
        UserError: if it cannot be made.
    """
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
        except FileExistsError:
            if not folder.parent.is_dir():
                raise UserError(f"{folder.parent} is a file, not a folder") from None
        except OSError as error:
            raise UserError(f"cannot make {folder} ({reason_of(error)})") from None
    raise AssertionError


@contextmanager
def sole_user(folder: Path, advice: str = "") -> Iterator[None]:
    """Hold a folder, which must exist, against other processes that call this.

    The system lets go of it when this process ends, however that may be.

    Raises:
        UserError: if another process holds it.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows
        yield
        return
    held = [descriptor]

    def let_go() -> None:
        if held:
            os.close(held.pop())

    # Forked processes, such as a loader's workers, would go on holding it.
    os.register_at_fork(after_in_child=let_go)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        let_go()
        ending = f"; {advice}" if advice else ""
        raise UserError(f"another process is writing to {folder}{ending}") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        let_go()


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """A block that one process at a time runs, of those that name the same file; others wait.

    Where files cannot be locked or made, they do not.
    """
    with _opened(lock) as file:
        if file is not None:
            import fcntl

            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def first_alone(lock: Path) -> Iterator[bool]:
    """A block that the first of the processes that name the same file runs alone.

    Those that come while it does so wait for its end, and then run it together. Says whether
    this is the first, which everyone is where files cannot be locked or made.
    """
    with _opened(lock) as file:
        first = True
        if file is not None:
            import fcntl

            with suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    first = False
                    fcntl.flock(file, fcntl.LOCK_SH)
        yield first


@contextmanager
def _opened(lock: Path) -> Iterator[IO[str] | None]:
    """A file to lock; None where there is none, or no locks (Windows)."""
    with ExitStack() as opened:
        file = None
        with suppress(OSError, ImportError):
            import fcntl  # noqa: F401

            file = opened.enter_context(lock.open("a"))
        yield file


def machine_lock(key: str) -> Path:
    """A file by which processes of this machine and user agree on who does what `key` names."""
    name = hashlib.sha256(f"{socket.gethostname()}\0{key}".encode(errors="surrogateescape"))
    folder = user_cache() / "taming" / "locks"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / name.hexdigest()[:32]


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do so."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file through `atomic_path`."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")

"""Files that are either complete or not there, however their writing ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taming.errors import UserError


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
    # The same folder, as only a rename within one file system is atomic; one name per process.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if durable:
            _flush_to_disk(partial)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        ending = f"; {advice}" if advice else ""
        raise UserError(f"cannot write {path} ({error.strerror or error}){ending}") from error
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file through `atomic_path`."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")

"""Downloads that continue where they stopped, and appear in their place once complete."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from taming.atomic_files import machine_lock, one_at_a_time
from taming.errors import UserError, interruptible

TIMEOUT = 60  # seconds without a byte, after which a connection counts as lost
_FAILED = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class Patience:
    """When to give up on a download."""

    tries: int = 5  # without receiving anything new
    wait: float = 1.0  # seconds before the second try; they double with each


@interruptible("received bytes are kept, and the same command goes on from there")
def fetch(
    url: str,
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    chunk_size: int = 2**16,
    patience: Patience | None = None,
) -> Path:
    """Download `url` to `path`, with a progress bar; returns the path.

    Received bytes are kept as `<path>.part`, and continued by the next try or the next call. Of
    processes that want a file at once, one fetches it.

    Args:
        size: the expected size in bytes. It is checked, as is the size that the server announces.

    Raises:
        UserError: if the file cannot be fetched, or has another size.
    """
    path, patience = Path(path), patience or Patience()
    had = path.is_file()
    with one_at_a_time(machine_lock(str(path.absolute()))):
        if path.is_file() and not had:  # by another process, meanwhile
            return path
        return _fetch(url, path, size, chunk_size, patience)


def _fetch(url: str, path: Path, size: int | None, chunk_size: int, patience: Patience) -> Path:
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _download_with_retries(url, part, chunk_size, patience)
    except (*_FAILED, ValueError) as error:
        kept = _size(part)
        if not kept:
            _delete_partial(part)
        again = f"; {kept:,} bytes are kept, the same command goes on from there" if kept else ""
        raise UserError(f"could not download {url} to {path}: {_reason(error)}{again}") from None
    received = _size(part)
    if size not in (None, received):
        _delete_partial(part)
        raise UserError(f"{url} sent {received:,} bytes instead of {size:,}; nothing was kept")
    _validator_file(part).unlink(missing_ok=True)
    os.replace(part, path)  # not `atomic_path`, whose partial files do not outlive a failure
    return path


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410):
        return f"the server answers {error.code} {error.reason}; the address may be out of date"
    return str(error) or type(error).__name__


def _download_with_retries(url: str, part: Path, chunk_size: int, patience: Patience) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            return _download_rest(url, part, chunk_size)
        except _FAILED as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= patience.tries or _is_permanent(error):
                raise
            time.sleep(patience.wait * 2 ** (failures - 1))


def _is_permanent(error: BaseException) -> bool:
    """Whether another try would fail in the same way."""
    if isinstance(error, urllib.error.HTTPError):
        return 400 <= error.code < 500 and error.code not in (408, 416, 425, 429)
    return isinstance(error, urllib.error.URLError) and isinstance(error.reason, FileNotFoundError)


def _download_rest(url: str, part: Path, chunk_size: int) -> None:
    """Append to `part` the bytes that it lacks; OSError if some are missing afterwards."""
    have = _size(part)
    request = urllib.request.Request(url, headers=_range_headers(part, have))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
            if total and int(total[1]) == have:
                return
            _delete_partial(part)
        raise
    with response:
        _receive(response, part, have, chunk_size)


def _range_headers(part: Path, have: int) -> dict[str, str]:
    headers, validator = {"User-Agent": "taming-transformers"}, _validator_file(part)
    if have:
        headers["Range"] = f"bytes={have}-"
    if have and validator.is_file():  # or two versions of a file could be joined
        headers["If-Range"] = validator.read_text()
    return headers


def _receive(response: Any, part: Path, have: int, chunk_size: int) -> None:
    start = _start(response)
    if start not in (0, have):
        _delete_partial(part)
        raise OSError(f"the server went on at byte {start:,} instead of {have:,}")
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if validator and not validator.startswith("W/"):
        _validator_file(part).write_text(validator)
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    name = part.name.removesuffix(".part")
    with (
        part.open("ab" if start else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name) as bar,
    ):
        while chunk := response.read(chunk_size):
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise OSError(f"only {_size(part):,} of {total:,} bytes arrived")


def _start(response: Any) -> int:
    """The position in the file of the response's first byte; -1 if it cannot be read."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _delete_partial(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)


def file_hash(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """The hash of a file, in hexadecimal digits."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()

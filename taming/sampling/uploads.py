"""Files that a browser sends: bounded, and under names that stay in their folder."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from taming.data.files.images import BadImage, image_mode_and_size
from taming.errors import UserError

MOST_BYTES = 20 * 2**20  # of an uploaded file
MOST_PIXELS = 25_000_000  # of an uploaded image, and of a sample
IMAGE_TYPES = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"]


class Upload(Protocol):
    """A file as streamlit hands it over."""

    name: str

    def getvalue(self) -> bytes:
        """Its content."""


@contextmanager
def stored(*uploads: Upload | None) -> Iterator[list[str | None]]:
    """The uploads as files on disk while the context lasts; errors have the names they came by."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield [
                None if upload is None else store(upload, Path(folder) / str(number))
                for number, upload in enumerate(uploads)
            ]
        except UserError as error:
            message = str(error)
            for number in range(len(uploads)):
                message = message.replace(os.path.join(folder, str(number), ""), "")
            raise UserError(message) from None


def safe_name(name: str) -> str:
    """What a browser calls a file, as a name in a folder here."""
    last = re.sub(r"[^\w .-]", "_", re.split(r"[/\\]", name)[-1])
    return f"upload{last[-100:]}" if last.startswith(".") or not last else last[-100:]


def store(upload: Upload, folder: Path) -> str:
    """Write an upload, unless it is too large, into a new folder; returns its path."""
    path = folder / safe_name(upload.name)
    content = upload.getvalue()
    if len(content) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES // 2**20} MiB")
    folder.mkdir()
    path.write_bytes(content)
    if path.suffix.lower().lstrip(".") in IMAGE_TYPES:
        try:
            height, width = image_mode_and_size(str(path))[1]  # as its header says
        except BadImage as error:
            raise UserError(f"{path} {error}; give an image file") from None
        require_pixels(height, width, str(path))
    return str(path)


def require_pixels(height: int, width: int, what: str) -> None:
    """Refuse (`UserError`) more pixels than a page is for; `what` has them."""
    if height * width > MOST_PIXELS:
        raise UserError(f"{what} has {width} x {height} pixels; {MOST_PIXELS:,} are allowed")

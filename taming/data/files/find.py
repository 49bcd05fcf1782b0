"""Finding files: folders of images, lists of paths, and checks of what they name."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from tqdm import tqdm

from taming.data.columns import StringTable, chunks
from taming.errors import UserError

OnError = Literal["raise", "skip"]
T = TypeVar("T")
R = TypeVar("R")
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm")
THREADS = 8  # network file systems answer slowly, but many questions at once
HEADERS_CHECKED = 20_000
log = logging.getLogger(__name__)


def in_threads(items: Iterable[T], work: Callable[[list[T]], R], label: str) -> Iterator[R]:
    """`work` on chunks of `items`: results in order, few chunks ahead, a bar after two seconds."""
    bar = tqdm(desc=label, unit=" files", delay=2, disable=None, leave=False)
    with ThreadPoolExecutor(THREADS) as pool, bar:
        waiting: deque[tuple[int, Callable[[], R]]] = deque()
        for chunk in chunks(items, 256):
            waiting.append((len(chunk), pool.submit(work, chunk).result))
            if len(waiting) > 2 * THREADS:
                bar.update(waiting[0][0])
                yield waiting.popleft()[1]()
        for length, result in waiting:
            yield result()
            bar.update(length)


def find_images(folder: str | Path, extensions: Iterable[str] = EXTENSIONS) -> Iterator[str]:
    """Paths of the image files below `folder`, sorted folder by folder; hidden ones are skipped."""
    endings = tuple("." + extension.lower().lstrip(".") for extension in extensions)
    seen: set[str] = set()  # links may lead back up
    for place, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        hidden = [name for name in subfolders if name.startswith((".", "__MACOSX"))]
        subfolders[:] = [] if real in seen else sorted(set(subfolders) - set(hidden))
        for name in [] if real in seen else sorted(names):
            if name.lower().endswith(endings) and not name.startswith("."):
                yield os.path.join(place, name)
        seen.add(real)


@dataclass
class _Missing:
    count: int = 0
    first: str = ""


def read_image_list(
    list_file: str | Path,
    dataset: str,
    locate: Callable[[str], str | None] | None = None,
    on_error: OnError = "raise",
) -> StringTable:
    """Paths of a text file with one path a line; blank lines and outer white space do not count.

    `locate` turns a line into what the table holds, None where there is no such file. By default a
    relative path is looked up in the working directory, then beside the list file. Raises
    `UserError` if the list is missing or empty or names files that do not exist; with `on_error`
    "skip" those are counted, logged and left out.
    """
    file = Path(list_file).expanduser()
    if not file.is_file():
        raise UserError(
            f"{dataset}: the list file {list_file} does not exist; give a text file with one image "
            "path per line, such as scripts/make_image_list.py writes"
        )
    missing = _Missing()
    table = StringTable(_existing(file, missing, locate or _near(file.parent)))
    listed = len(table) + missing.count
    if missing.count:
        message = f"{dataset}: {missing.first} does not exist ({missing.count} of the {listed} "
        if on_error == "raise" or not len(table):
            raise UserError(
                f"{message}listed files are missing); put the files there or correct the list"
            )
        log.warning("%slisted files are missing and left out)", message)
    if not listed:
        raise UserError(
            f"{dataset}: the list file {list_file} is empty; write one image path per line into it"
        )
    return table


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with open(file, "rb") as raw:
        wide = raw.read(2) in (b"\xff\xfe", b"\xfe\xff")  # as Windows' shell redirects
    encoding = "utf-16" if wide else "utf-8-sig"
    with open(file, encoding=encoding, errors="replace" if wide else "surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if path := line.strip():
                yield number, path


def _existing(file: Path, missing: _Missing, locate: Callable[[str], str | None]) -> Iterator[str]:
    def locate_all(lines: list[tuple[int, str]]) -> list[tuple[int, str, str | None]]:
        return [(number, path, locate(path)) for number, path in lines]

    for chunk in in_threads(_lines(file), locate_all, f"looking for the files of {file.name}"):
        for number, listed, found in chunk:
            if found is not None:
                yield found
            else:
                missing.first = missing.first or f"line {number} of {file}: {listed}"
                missing.count += 1


def _near(folder: Path) -> Callable[[str], str | None]:
    def locate(path: str) -> str | None:
        choices = (path, os.path.join(folder, path))
        return next((choice for choice in choices if os.path.isfile(choice)), None)

    return locate


def check_spread(
    count: int, check: Callable[[int], None], label: str, at_most: int = HEADERS_CHECKED
) -> None:
    """Run `check` (which raises) on all of range(count), or on `at_most`, evenly spaced."""
    checked = min(count, at_most)

    def check_all(chunk: list[int]) -> None:
        for number in chunk:
            check(number)

    numbers = (number * count // checked for number in range(checked))
    for _ in in_threads(numbers, check_all, label):
        pass


def split_off(names: Iterable[str], fraction: float, seed: int, key: str = "") -> set[str]:
    """The share `fraction` of `names` that is set aside: fixed by `seed`, at least one of two.

    Names are ranked by a hash of their own, so that files which are added later move few others.
    """

    def rank(name: str) -> bytes:
        return hashlib.blake2b(os.fsencode(f"{seed}/{key}/{name}"), digest_size=16).digest()

    ranked = sorted(names, key=rank)
    count = round(len(ranked) * fraction)
    return set(ranked[: min(max(count, int(fraction > 0)), max(len(ranked) - 1, 0))])


def write_image_lists(
    folder: str | Path, output: str | Path, test_fraction: float = 0.05, seed: int = 0
) -> tuple[int, int]:
    """Write `train.txt` and `test.txt` in `output`, absolute paths of the images below `folder`.

    Returns how many each lists. Raises `UserError` if there are fewer than two images.
    """
    top = os.path.abspath(Path(folder).expanduser())
    names = [os.path.relpath(path, top) for path in find_images(top)]
    if len(names) < 2:
        raise UserError(
            f"{folder} has {len(names)} image files; give a folder with at least two "
            f"({', '.join(EXTENSIONS)}), at any depth"
        )
    test = split_off(names, test_fraction, seed)
    train = [name for name in names if name not in test]
    os.makedirs(output, exist_ok=True)
    for file, listed in (("train.txt", train), ("test.txt", sorted(test))):
        text = "".join(os.path.join(top, name) + "\n" for name in listed)
        Path(output, file).write_bytes(os.fsencode(text))
    return len(train), len(test)

"""Finding image files in folders, dividing them into splits, and checking many of them."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from taming.data.columns import chunks

T = TypeVar("T")
R = TypeVar("R")
EXTENSIONS = (
    "jpg",
    "jpeg",
    "jfif",
    "png",
    "webp",
    "bmp",
    "gif",
    "tif",
    "tiff",
    "ppm",
    "pgm",
    "pbm",
    "avif",
    "jp2",
    "tga",
)
JPEG_AND_PNG = ("jpg", "jpeg", "png")  # the formats of ImageNet and ADE20K
VAL_FOLDERS = ("val", "validation", "test")
THREADS = 8  # a network file system answers slowly, but many requests at a time


def in_threads(items: Iterable[T], work: Callable[[T], R], label: str) -> Iterator[R]:
    """`work` of each item, in threads; the results in order.

    Few items are ahead of what is consumed, so that these may be without end. A progress bar called
    `label` appears after two seconds.
    """

    def work_on(chunk: list[T]) -> list[R]:
        return [work(item) for item in chunk]

    bar = tqdm(desc=label, unit=" files", delay=2, disable=None, leave=False)
    with ThreadPoolExecutor(THREADS) as pool, bar:
        waiting: deque[Future[list[R]]] = deque()
        for chunk in chunks(items, 256):
            waiting.append(pool.submit(work_on, chunk))
            if len(waiting) > 2 * THREADS:
                bar.update(256)
                yield from waiting.popleft().result()
        for future in waiting:
            yield from future.result()


def find_images(
    folder: str | Path, extensions: Iterable[str] = EXTENSIONS, deep: bool = True
) -> Iterator[str]:
    """Paths of the image files below `folder`, sorted folder by folder, without hidden ones.

    Links are followed; without `deep` only the folder itself is looked into.
    """
    endings = tuple("." + extension.lower().lstrip(".") for extension in extensions)
    seen: set[str] = set()  # links may lead back up
    for place, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        hidden = [name for name in subfolders if name.startswith((".", "__MACOSX"))]
        below = set(subfolders) - set(hidden) if deep and real not in seen else set()
        subfolders[:] = sorted(below)
        for name in [] if real in seen else sorted(names):
            if name.lower().rstrip().endswith(endings) and not name.startswith("."):
                yield os.path.join(place, name)
        seen.add(real)


def relative_names(folder: str | Path, extensions: Iterable[str] = EXTENSIONS) -> list[str]:
    """Names of the image files below `folder`, relative to it; see `find_images`."""
    names = (os.path.relpath(path, folder) for path in find_images(folder, extensions))
    return [name.replace(os.sep, "/") for name in names]


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted (as numbers, if all of them are)."""
    try:
        subfolders = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []
    names = sorted(name for name in subfolders if not name.startswith((".", "__")))
    return sorted(names, key=int) if all(map(str.isdecimal, names)) else names


def split_off(names: Iterable[str], fraction: float, seed: int, key: str = "") -> set[str]:
    """The share `fraction` of `names` that is set aside for validation; it depends on `seed`.

    Of two or more names at least one is set aside (unless `fraction` is 0) and at least one is not.
    Names are ranked by a hash of their own, so that files which are added later move few others.
    """

    def rank(name: str) -> bytes:
        return hashlib.blake2b(os.fsencode(f"{seed}/{key}/{name}"), digest_size=16).digest()

    ranked = sorted(names, key=rank)
    count = round(len(ranked) * fraction)
    return set(ranked[: min(max(count, int(fraction > 0)), max(len(ranked) - 1, 0))])

"""For datasets of one's own: fetching and unpacking them, square crops, and batches of scenes."""

from __future__ import annotations

import math
import multiprocessing
import platform
import sys
import tarfile
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data._utils.collate import collate, default_collate_fn_map
from tqdm import tqdm

from taming.data.helper_types import Annotation
from taming.errors import UserError
from taming.user_files import DAMAGED_ARCHIVE, regular
from taming.util import download

_NOT_READ: tuple[type[Exception], ...] = (*DAMAGED_ARCHIVE, OSError)

# ---------------------------------------------------------------------- files


def unpack(path: str) -> None:
    """Unpack a `.tar.gz`, `.tar` or `.zip` beside it.

    Raises `UserError` for other endings, damaged or encrypted files, and members that lead out of
    the folder.
    """
    folder = Path(path).parent
    try:
        if path.endswith((".tar", ".tar.gz", ".tgz")):
            _require_filter(path)
            with tarfile.open(regular(path)) as archive:
                archive.extractall(folder, filter="data")
        elif path.endswith(".zip"):
            with zipfile.ZipFile(regular(path)) as archive:
                _check_places(archive, path)
                archive.extractall(folder)
        else:
            raise UserError(f"{path} is neither .tar.gz, .tar nor .zip; unpack it yourself")
    except _NOT_READ as error:
        raise UserError(f"{path} cannot be unpacked ({error}); get it anew") from None


def _require_filter(path: str) -> None:
    """Early patch versions of Python 3.10 and 3.11 write members of tars wherever these say."""
    if "data_filter" not in vars(tarfile):
        raise UserError(
            f"{path} cannot be unpacked safely by Python {platform.python_version()}; unpack it "
            "yourself (tar xf), or take Python from 3.10.12 or 3.11.4 on"
        )


def _check_places(archive: zipfile.ZipFile, path: str) -> None:
    """Refuse members that lead out of a folder: Python would write them to it by another name."""
    for name in archive.namelist():
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or parts[0].endswith(":"):
            raise UserError(
                f"{path} cannot be unpacked ({name!r} is outside of its folder); get it anew"
            )


def reporthook(bar: tqdm) -> Callable[[int, int, int | None], None]:
    """A hook for `urllib.request.urlretrieve` that shows its progress on `bar`."""

    def show(blocks: int = 1, block_size: int = 1, total: int | None = None) -> None:
        if total is not None:
            bar.total = total
        bar.update(blocks * block_size - bar.n)

    return show


def get_root(name: str) -> str:
    """The folder `data/<name>`, which is made if need be."""
    Path("data", name).mkdir(parents=True, exist_ok=True)
    return f"data/{name}"


def is_prepared(root: str) -> bool:
    """Whether `mark_prepared` was called for a folder."""
    return Path(root, ".ready").exists()


def mark_prepared(root: str) -> None:
    """Remember that the files of a folder are complete."""
    Path(root, ".ready").touch()


def prompt_download(
    file_: str, source: str, target_dir: str, content_dir: str | None = None
) -> str:
    """The path of a file that people have to fetch themselves; asks until it is there.

    The folder `content_dir`, with what the file holds, will do as well. Raises `UserError` where
    nobody can answer.
    """
    path, content = Path(target_dir, file_), content_dir and Path(target_dir, content_dir)
    while not path.exists() and not (content and content.exists()):
        alternative = f", or its content to {content}" if content else ""
        wanted = f"download {file_} from {source} to {path}{alternative}"
        try:
            input(f"Please {wanted}, and press Enter.")
        except EOFError:
            raise UserError(f"{path} is missing; {wanted}, and run again") from None
    return str(path)


def download_url(file_: str, url: str, target_dir: str) -> str:
    """Fetch `url` as `target_dir/file_`, unless it is there; returns the path."""
    path = Path(target_dir, file_)
    if not path.exists():
        download(url, path)
    return str(path)


def download_urls(urls: Mapping[str, str], target_dir: str) -> dict[str, str]:
    """`download_url` for addresses by file name; returns paths by file name."""
    return {file: download_url(file, url, target_dir) for file, url in urls.items()}


# ---------------------------------------------------------------------- images and batches


def quadratic_crop(x: np.ndarray, bbox: Sequence[float], alpha: float = 1.0) -> np.ndarray:
    """A square around a box of an image (H, W) or (H, W, C), mirrored at the image's borders.

    Args:
        bbox: left, top, right and lower border in pixels.
        alpha: its side as a share of the longer side of the box.
    """
    height, width = x.shape[:2]
    left, top, right, bottom = np.clip(np.asarray(bbox, np.float32), 0, max(height, width))
    side = max(2, int(alpha * max(right - left, bottom - top)))
    row, column = int((top + bottom) / 2), int((left + right) / 2)
    pad = max(0, math.ceil(side / 2) + 1 - min(row, column, height - row, width - column))
    padded = np.pad(x, [(pad, pad), (pad, pad)] + [(0, 0)] * (x.ndim - 2), mode="reflect")
    first_row, first_column = row + pad - side // 2, column + pad - side // 2
    return np.array(padded[first_row : first_row + side, first_column : first_column + side])


def start_method(workers: int) -> str | None:
    """How a loader starts its `workers`: the `multiprocessing_context` of a `DataLoader`.

    On Linux they are forks, as they were by default before Python 3.14: they start at once, share
    the memory of the dataset, which need not be picklable, and end with the run. None, which is
    Python's own choice, elsewhere, without workers, and after `set_start_method("spawn")`.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    own = chosen in (None, "forkserver")  # which Python 3.14 says once it was asked
    return "fork" if workers and own and sys.platform == "linux" else None


def custom_collate(batch: list[Any]) -> Any:
    """torch's `default_collate`, but lists of `Annotation`, of any length, are a list of these.

    Raises `UserError` for images of several sizes, entries that only some items have, and what
    makes no batch.
    """
    if all(isinstance(item, Mapping) for item in batch):
        _check_keys(batch)
    try:
        return collate(batch, collate_fn_map=_BY_TYPE)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise _why_no_batch(batch, error) from error


def _check_keys(batch: Sequence[Mapping[Any, Any]]) -> None:
    for item in batch[1:]:
        if missing := batch[0].keys() ^ item.keys():
            key = min(missing, key=str)
            raise UserError(f"some items of the data have no {key!r}, which others have")


def _why_no_batch(batch: Sequence[Any], error: Exception) -> UserError:
    """The error for items of which `collate` makes nothing, naming the entry that is the reason."""
    if not all(isinstance(item, Mapping) for item in batch):
        kinds = _named({type(item).__name__ for item in batch})
        return UserError(
            f"items of the data must be dicts such as {{'image': pixels}}; there are items of type "
            f"{kinds} ({error})"
        )
    for key in batch[0]:
        values = [item[key] for item in batch]
        try:
            collate(values, collate_fn_map=_BY_TYPE)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as reason:
            return UserError(f"the entries {key!r} of {_why(values, reason)}")
    return UserError(f"no batch can be made of the items of the data ({error})")


def _why(values: Sequence[Any], reason: Exception) -> str:
    shapes = {tuple(value.shape) for value in values if isinstance(value, np.ndarray | Tensor)}
    if len(shapes) > 1:
        named = " and ".join(map(str, sorted(shapes)[:2]))
        return (
            f"a batch have several shapes, {named}; give a crop_size, or data.params.batch_size=1"
        )
    kinds = {_kind(value) for value in values}
    if len(kinds) > 1:
        return f"a batch are of several types, {_named(kinds)}; they must be of one"
    if not isinstance(values[0], Tensor | int | float | str | Mapping | Sequence):
        return (
            f"the data are of type {kinds.pop()}, of which no batch can be made; give arrays, "
            "tensors, numbers or texts"
        )
    return f"the data make no batch ({reason})"


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{name} of {value.dtype}" if isinstance(value, np.ndarray) else name


def _named(kinds: Collection[str]) -> str:
    return " and ".join(sorted(kinds))


def _collate_lists(batch: list[list[Any]], *, collate_fn_map: Any = None) -> list[Any]:
    if any(isinstance(entry[0], Annotation) for entry in batch if entry):
        return batch
    if len({len(entry) for entry in batch}) > 1:
        raise RuntimeError("each element in list of batch should be of equal size")
    columns = zip(*batch, strict=True)
    return [collate(list(entries), collate_fn_map=collate_fn_map) for entries in columns]


def _collate_arrays(batch: list[np.ndarray], *, collate_fn_map: Any = None) -> Any:
    """Mirrored arrays have negative strides, which tensors have not."""
    arrays = [x.copy() if any(s < 0 for s in x.strides) else x for x in batch]
    return default_collate_fn_map[np.ndarray](arrays, collate_fn_map=collate_fn_map)


_BY_TYPE: dict[Any, Callable[..., Any]] = {
    **default_collate_fn_map,
    list: _collate_lists,
    np.ndarray: _collate_arrays,
}

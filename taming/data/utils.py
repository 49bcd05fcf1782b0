"""For datasets of one's own: fetching and unpacking them, square crops, and batches of scenes."""

from __future__ import annotations

import math
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data._utils.collate import collate, default_collate_fn_map
from tqdm import tqdm

from taming.data.helper_types import Annotation
from taming.errors import UserError
from taming.util import download

# ---------------------------------------------------------------------- files


def unpack(path: str) -> None:
    """Unpack a `.tar.gz`, `.tar` or `.zip` beside it, without what would lie elsewhere.

    Raises `UserError` for other endings, damaged files, and members that lead out of the folder.
    """
    folder = Path(path).parent
    try:
        if path.endswith((".tar", ".tar.gz", ".tgz")):
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        elif path.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        else:
            raise UserError(f"{path} is neither .tar.gz, .tar nor .zip; unpack it yourself")
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); get it anew") from None


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


def custom_collate(batch: list[Any]) -> Any:
    """torch's `default_collate`, but lists of `Annotation`, of any length, are a list of these.

    Raises `UserError` for images of several sizes, entries that only some items have, and what
    makes no batch.
    """
    try:
        return collate(batch, collate_fn_map=_BY_TYPE)
    except KeyError as error:
        raise UserError(f"some items of the data have no {error}, which others have") from None
    except (RuntimeError, TypeError):
        for key in batch[0] if isinstance(batch[0], Mapping) else ():
            _check_shapes(key, [item[key] for item in batch])
            _check_type(key, batch[0][key])
        raise


def _check_type(key: str, value: Any) -> None:
    if not isinstance(value, np.ndarray | Tensor | int | float | str | Mapping | Sequence):
        raise UserError(
            f"the entries {key!r} of the data are of type {type(value).__name__}, of which no "
            "batch can be made; give arrays, tensors, numbers or texts"
        ) from None


def _check_shapes(key: str, values: list[Any]) -> None:
    shapes = {tuple(value.shape) for value in values if isinstance(value, np.ndarray | Tensor)}
    if len(shapes) > 1:
        named = " and ".join(map(str, sorted(shapes)[:2]))
        raise UserError(
            f"the entries {key!r} of a batch have several shapes, {named}; give a crop_size, or "
            "data.params.batch_size=1"
        ) from None


def _collate_lists(batch: list[list[Any]], *, collate_fn_map: Any = None) -> list[Any]:
    if any(isinstance(entry[0], Annotation) for entry in batch if entry):
        return batch
    if len({len(entry) for entry in batch}) > 1:
        raise RuntimeError("each element in list of batch should be of equal size")
    columns = zip(*batch, strict=True)
    return [collate(list(entries), collate_fn_map=collate_fn_map) for entries in columns]


_BY_TYPE: dict[Any, Callable[..., Any]] = {**default_collate_fn_map, list: _collate_lists}

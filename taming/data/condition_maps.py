"""What lies beside an image, pixel for pixel: labels, depth, or another image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from taming.config import did_you_mean
from taming.data.files.images import (
    PLAIN,
    BadImage,
    Reading,
    image_mode_and_size,
    read_labels,
    read_rgb,
    read_stored,
)
from taming.errors import UserError
from taming.pictures import to_values_array
from taming.shipped import script
from taming.user_files import read_text, with_home

UNLABELED = 255
INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B")
DEPTH_MODES = ("RGBA", "L", "I", "I;16", "I;16B", "F")


class MapKind:
    """How one kind of map is read, resized and put into items."""

    name: ClassVar[str]
    smooth: bool  # resized like an image; otherwise the nearest value is taken
    # Headers do not show whether values are right: some are decoded when a dataset is made.
    checked_by_decoding: ClassVar[bool] = False

    def header_size(self, path: str, reading: Reading = PLAIN) -> tuple[int, int] | None:
        """(height, width) without decoding, None if that is not known.

        Raises `BadImage`, also for a wrong pixel format.
        """
        return image_mode_and_size(path, reading.upright)[1]

    def read(self, path: str, reading: Reading = PLAIN) -> np.ndarray:
        """The whole map (H, W) or (H, W, C); raises `BadImage`."""
        raise NotImplementedError

    def finish(self, cropped: np.ndarray) -> np.ndarray:
        """From what `read` returned, resized and cropped, to what items hold."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What `map_kind` makes this kind of again, for JSON."""
        return {"kind": self.name, **vars(self)}


def _checked_size(path: str, upright: bool, modes: Sequence[str], advice: str) -> tuple[int, int]:
    mode, size = image_mode_and_size(path, upright)
    if mode not in modes:
        raise BadImage(f"has pixels of mode {mode}, not {' or '.join(modes[:3])}: {advice}")
    return size


def one_hot(labels: np.ndarray, n_labels: int) -> np.ndarray:
    """Labels (H, W), integers below `n_labels`, as float32 (H, W, n_labels) of zeros and ones."""
    hot = np.zeros((labels.size, n_labels), dtype=np.float32)
    hot[np.arange(labels.size), labels.reshape(-1)] = 1
    return hot.reshape(*labels.shape, n_labels)


@dataclass(frozen=True)
class Palette:
    """Colors of labels: row i of `colors` uint8 (n, 3) is label i; `source` is for errors."""

    source: str
    colors: np.ndarray

    def labels_of(self, rgb: np.ndarray) -> np.ndarray:
        """Pixels uint8 (H, W, 3) as labels (H, W); raises `BadImage` for an unlisted color."""
        known, wanted = _color_codes(self.colors), _color_codes(rgb)  # (n,), (H, W)
        order = np.argsort(known)
        places = np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)
        labels = order[places]  # (H, W)
        unknown = known[labels] != wanted
        if unknown.any():
            row, column = np.argwhere(unknown)[0]
            color = " ".join(map(str, rgb[row, column]))
            raise BadImage(
                f"has the color {color} at row {row}, column {column}, which {self.source} lacks"
            )
        return labels


def _color_codes(rgb: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) as one number per color, int32 (...)."""
    wide = rgb.astype(np.int32)
    return (wide[..., 0] << 16) + (wide[..., 1] << 8) + wide[..., 2]


def read_palette(file: str | Path) -> Palette:
    """Read a text file with a color per line, `red green blue` and perhaps a name; label 0 first.

    Raises `UserError`, also for a line that repeats a color.
    """
    try:
        lines = read_text(with_home(Path(file))).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the palette {file} cannot be read ({error})") from None
    seen: dict[tuple[int, ...], int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        color = _color(line)
        if color is None or color in seen:
            what = "is no color" if color is None else f"repeats label {seen[color]}'s color"
            raise UserError(
                f"line {number} of the palette {file} {what}; write red, green and blue as whole "
                "numbers 0 to 255, a different color for each label"
            )
        seen[color] = len(seen)
    if not seen:
        raise UserError(f"the palette {file} has no colors; write one 'red green blue' per line")
    return Palette(str(file), np.array(list(seen), dtype=np.uint8))


def _color(line: str) -> tuple[int, ...] | None:
    words = line.replace(",", " ").split()[:3]
    if len(words) < 3 or not all(word.isdecimal() and int(word) <= 255 for word in words):
        return None
    return tuple(map(int, words))


@dataclass(frozen=True)
class Labels(MapKind):
    """A label per pixel, as `(H, W, n_labels)` float32 one-hot.

    Files hold the labels themselves (8 or 16 bits, or palette indices), or colors if there is a
    `palette`. `shift` adds 1 to 8-bit labels, so that 255, unlabeled, becomes 0.
    """

    n_labels: int
    shift: bool = False
    palette: Palette | None = None
    name = "labels"
    smooth = False
    checked_by_decoding = True

    def header_size(self, path: str, reading: Reading = PLAIN) -> tuple[int, int] | None:
        if self.palette:
            return super().header_size(path, reading)
        advice = "save one gray value per pixel, or give a palette file for colors"
        return _checked_size(path, reading.upright, INDEX_MODES, advice)

    def read(self, path: str, reading: Reading = PLAIN) -> np.ndarray:
        if self.palette:
            labels = self.palette.labels_of(read_rgb(path, reading))
        else:
            self.header_size(path)
            labels = read_labels(path, reading.upright)
        if self.shift:
            labels = np.where(labels == UNLABELED, 0, labels.astype(np.int32) + 1)
        if (low := int(labels.min())) < 0 or labels.max() >= self.n_labels:
            raise BadImage(self._out_of_range(low if low < 0 else int(labels.max())))
        return labels.astype(np.uint8 if self.n_labels <= 256 else np.int32)

    def _out_of_range(self, label: int) -> str:
        stored, limit = label - self.shift, self.n_labels - 1 - self.shift
        return (
            f"has the label {stored}, but with n_labels {self.n_labels} labels go from 0 to {limit}"
            f"{' (and 255, unlabeled)' if self.shift else ''}"
        )

    def finish(self, cropped: np.ndarray) -> np.ndarray:
        if cropped.size and cropped.max() >= self.n_labels:
            raise UserError(
                f"an augmentation fills segmentations with the label {cropped.max()}, but n_labels "
                f"is {self.n_labels}; give it another fill_mask"
            )
        return one_hot(cropped, self.n_labels)

    def describe(self) -> dict[str, Any]:
        colors = self.palette.colors.tolist() if self.palette else None
        return super().describe() | {"palette": colors}


@dataclass(frozen=True)
class Depth(MapKind):
    """Depth (H, W) float32, scaled so that the whole image's lowest and highest are -1 and 1
    (0, if they are the same).

    Files are RGBA whose four bytes are one little-endian float32 per pixel, or have one value of
    8, 16 or 32 bits per pixel.
    """

    name = "depth"
    smooth = True

    def header_size(self, path: str, reading: Reading = PLAIN) -> tuple[int, int]:
        advice = f"save depth as {script('extract_depth')} does"
        return _checked_size(path, reading.upright, DEPTH_MODES, advice)

    def read(self, path: str, reading: Reading = PLAIN) -> np.ndarray:
        self.header_size(path)
        values = read_stored(path, reading.upright)
        if values.ndim == 3:  # (H, W, 4) bytes
            values = rgba_to_depth(values)
        depth = values.astype(np.float32)
        if not np.isfinite(depth).all():
            raise BadImage("has depths that are no finite numbers")
        low, high = depth.min(), depth.max()
        return np.zeros_like(depth) if low == high else (depth - low) / (high - low) * 2 - 1

    def finish(self, cropped: np.ndarray) -> np.ndarray:
        return cropped


def rgba_to_depth(x: np.ndarray) -> np.ndarray:
    """Pixels uint8 (H, W, 4) as the float32 values (H, W) of whose bytes they were made."""
    return np.ascontiguousarray(x).view("<f4")[..., 0]


def depth_to_rgba(depth: np.ndarray) -> np.ndarray:
    """Depth (H, W) as the bytes of its float32 values, uint8 (H, W, 4), for RGBA PNGs."""
    return np.ascontiguousarray(depth, dtype="<f4").view(np.uint8).reshape(*depth.shape, 4)


@dataclass(frozen=True)
class ImageMap(MapKind):
    """Another image, (H, W, 3) float32 in [-1, 1]; not `smooth` if its colors mean labels."""

    smooth: bool = True
    name = "image"

    def read(self, path: str, reading: Reading = PLAIN) -> np.ndarray:
        return read_rgb(path, reading)

    def finish(self, cropped: np.ndarray) -> np.ndarray:
        return to_values_array(cropped)


def map_kind(description: Mapping[str, Any]) -> MapKind:
    """The kind of `{kind: labels, n_labels: 183, shift: true}`, `{kind: depth}`, `{kind: image}`.

    A `palette` is a text file, or a list of colors as `MapKind.describe` writes it. Raises
    `UserError` for unknown kinds and options.
    """
    options = dict(description)
    name = options.pop("kind", None)
    if name not in KINDS:
        raise UserError(f"there is no kind {name!r} of map{did_you_mean(str(name), KINDS)}")
    palette = options.pop("palette", None)
    if isinstance(palette, str):
        options["palette"] = read_palette(palette)
    elif palette is not None:
        colors = np.array(palette, dtype=np.uint8)
        options["palette"] = Palette("the palette of the shards", colors)
    try:
        return KINDS[name](**options)
    except TypeError as error:
        raise UserError(f"maps of kind {name}: {error}") from None


KINDS: dict[str, type[MapKind]] = {kind.name: kind for kind in (Labels, Depth, ImageMap)}

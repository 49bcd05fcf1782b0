"""Image files with contents that are functions of a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from taming.data.examples.rendering import render

LOSSLESS = {".webp": {"lossless": True}}

Content = Callable[[int, int, int], np.ndarray]
"""(height, width, seed) -> uint8 (height, width, 3)."""


def ramps(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colors that differ at every place and by `seed`."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 200 // height, columns * 200 // width, (rows + columns) * 100 // width]
    return (np.stack(channels, axis=2) + 7 * seed % 50).astype(np.uint8)


def noise(height: int = 12, width: int = 12, seed: int = 0) -> np.ndarray:
    """Noise; brighter with every hundred of `seed`, so that sets of images differ."""
    values = np.random.RandomState(seed).rand(height, width, 3)
    return (values * (120 + 30 * (seed // 100 % 5))).astype(np.uint8)


def write_image(
    path: Path, height: int = 24, width: int = 32, seed: int = 0, content: Content = ramps
) -> str:
    """Save an RGB image in the format of its ending; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(content(height, width, seed)).save(path)
    return str(path)


def write_deep(path: Path, highest: int = 4095) -> str:
    """Save a gray image of 16 bits, whose values go from 0 to `highest`; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.linspace(0, highest, 24 * 32).round().astype(np.uint16)
    Image.fromarray(values.reshape(24, 32)).save(path)
    return str(path)


def write_turned(path: Path, orientation: int, height: int = 24, width: int = 32) -> str:
    """Save ramps as a camera does that was held in an EXIF orientation; returns the path."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ramps(height, width)).save(path, exif=exif, **LOSSLESS.get(path.suffix, {}))
    return str(path)


def write_images(
    folder: Path,
    count: int,
    height: int = 24,
    width: int = 32,
    *,
    seed: int = 0,
    content: Content = ramps,
) -> list[str]:
    """`count` different PNGs, 000.png and on; returns their paths."""
    return [
        write_image(folder / f"{i:03d}.png", height, width, seed + i, content) for i in range(count)
    ]


def image_folder(
    folder: Path, count: int, height: int = 12, width: int = 12, seed: int = 0
) -> Path:
    """A folder with `count` more PNGs of noise; returns it."""
    write_images(folder, count, height, width, seed=seed, content=noise)
    return folder


def image_classes(root: Path, counts: Mapping[str, int], seed: int = 0) -> Path:
    """Folders with so many PNGs of noise, brighter in each; returns `root`."""
    for place, (name, count) in enumerate(counts.items()):
        image_folder(root / name, count, seed=seed + 100 * place)
    return root


def image_sizes(folder: Path, sizes: Mapping[str, tuple[int, int]]) -> Path:
    """A folder with PNGs of noise by name and (height, width); returns it."""
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        write_image(folder / name, height, width, seed, noise)
    return folder


def scene_folder(folder: Path, count: int, seed: int = 0, brightness: float = 1.0) -> Path:
    """A folder with `count` PNGs 24 x 24 of rendered scenes; returns it."""

    def content(height: int, width: int, seed: int) -> np.ndarray:
        return (render(seed, height, width).image * brightness).astype(np.uint8)

    write_images(folder, count, 24, 24, seed=seed, content=content)
    return folder


def read_images(folder: Path) -> Tensor:
    """uint8 [N, 3, H, W] of the folder's files in the order of their names."""
    arrays = [np.array(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def truncate(path: str | Path, keep: float = 0.5) -> None:
    """Cut a file short, as an interrupted copy does."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * keep)])


def touch(*paths: Path) -> None:
    """Empty files, and the folders on the way to them."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

"""Real image files for the data tests, written where a test asks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colors (H, W, 3), uint8, that differ at every place and by `seed`."""
    rows, columns = np.mgrid[0:height, 0:width]
    ramps = [rows * 200 // height, columns * 200 // width, (rows + columns) * 100 // width]
    return (np.stack(ramps, axis=2) + 7 * seed % 50).astype(np.uint8)


def write_image(path: Path, height: int = 24, width: int = 32, seed: int = 0) -> str:
    """Save an RGB image in the format of its ending; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(height, width, seed)).save(path)
    return str(path)


def write_images(folder: Path, count: int, height: int = 24, width: int = 32) -> list[str]:
    """`count` different PNGs."""
    return [write_image(folder / f"{i:03d}.png", height, width, seed=i) for i in range(count)]


def touch(*paths: Path) -> None:
    """Empty files, and the folders on the way to them."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def truncate(path: str | Path, keep: float = 0.5) -> None:
    """Cut a file short, as an interrupted copy does."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * keep)])

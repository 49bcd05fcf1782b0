"""Image files for the tests of evaluation."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from tests.evaluation.small import TinyExtractor


def pixels(seed: int, width: int = 12, height: int = 12) -> np.ndarray:
    """uint8 (height, width, 3), a function of the seed; brighter with every hundred."""
    noise = np.random.RandomState(seed).rand(height, width, 3)
    return (noise * (120 + 30 * (seed // 100 % 5))).astype(np.uint8)


def write_images(folder: Path, count: int, seed: int = 0, **size: int) -> Path:
    """`count` PNGs, `000000.png` and on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(pixels(seed + number, **size)).save(folder / f"{number:06}.png")
    return folder


def write_classes(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Folders of PNGs, `count` of them in each."""
    for place, (name, count) in enumerate(counts.items()):
        write_images(root / name, count, seed + 100 * place)
    return root


class FatalExtractor(TinyExtractor):
    """Notes how many images it gets in the file of $TINY_LOG, and kills its process, as a full
    machine would, once there are $TINY_KILL_AT of them."""

    seen = 0

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with open(os.environ["TINY_LOG"], "a") as log:
            log.write(f"{len(images)}\n")
        self.seen += len(images)
        if self.seen > int(os.environ.get("TINY_KILL_AT", 10**9)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)

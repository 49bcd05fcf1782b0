"""How evaluators resize images before their networks, by Pillow's bicubic filter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from taming.devices import available_cpus
from taming.evaluation.sources.resize import center_crop


@dataclass(frozen=True)
class Resize:
    """Resizes to `side` x `side` pixels by Pillow, whose bicubic filter is anti-aliased."""

    side: int
    exact: bool = False  # every channel in float32, not rounded to 8 bits
    center: bool = False  # of the largest square in the middle; else the shape is not kept

    @property
    def name(self) -> str:
        """What it is, for results."""
        parts = ("center-crop" * self.center, "pillow-bicubic" + "-float" * self.exact)
        return " ".join((*filter(None, parts), str(self.side)))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, 3, side, side] of uint8, or of float32 if `exact`."""
        with ThreadPoolExecutor(available_cpus()) as threads:  # Pillow lets go of Python's lock
            resized = list(threads.map(self._resized, images.cpu().numpy()))
        return torch.from_numpy(np.stack(resized))

    def _resized(self, image: np.ndarray) -> np.ndarray:
        size = (self.side, self.side)
        if self.center:
            image = center_crop(image.transpose(1, 2, 0), (1, 1)).transpose(2, 0, 1)
        if not self.exact:
            whole = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            return np.asarray(whole.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        channels = [Image.fromarray(channel) for channel in image.astype(np.float32)]
        resized = [channel.resize(size, Image.Resampling.BICUBIC) for channel in channels]
        return np.stack([np.asarray(channel) for channel in resized]).clip(0, 255)


CLEAN = Resize(299, exact=True)  # clean-fid's
DGM_EVAL = Resize(224)  # dgm-eval's
CMMD = Resize(336, center=True)  # that of the published code of CMMD

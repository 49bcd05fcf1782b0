"""Conditions that are made from the image itself: less detail, or its edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from taming.config import did_you_mean
from taming.data.transforms import JointTransform
from taming.errors import UserError
from taming.pictures import to_uint8_array, to_values_array
from taming.shipped import extra

ENLARGEMENTS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Degradation:
    """A pair made from one image: a target, and a condition that shows less of it.

    The target is the whole image, if there is an `hr_factor` reduced by it. The condition is the
    target reduced by `up_factor` (bicubic, Pillow's filter) and enlarged again by `keep_mode`, one
    of `ENLARGEMENTS`; or with `edges` the target's edges; without either there is none. Both are
    then resized and cropped alike. Raises `UserError` for factors below 1 and unknown modes.
    """

    up_factor: int | None = None
    hr_factor: int | None = None
    keep_mode: str = "bicubic"
    edges: bool = False

    def __post_init__(self) -> None:
        for name, factor in (("up_factor", self.up_factor), ("hr_factor", self.hr_factor)):
            if factor is not None and (not isinstance(factor, int) or factor < 1):
                raise UserError(f"{name} {factor!r} is no factor; give a whole number such as 4")
        if self.keep_mode not in ENLARGEMENTS:
            hint = did_you_mean(self.keep_mode, ENLARGEMENTS)
            raise UserError(f"keep_mode {self.keep_mode!r} is not known{hint}")

    @property
    def has_condition(self) -> bool:
        """Whether there is an `lr`."""
        return self.up_factor is not None or self.edges

    @property
    def changes(self) -> bool:
        """Whether `pair` does more than `transform` alone."""
        return self.has_condition or self.hr_factor is not None

    def pair(
        self, transform: JointTransform, image: np.ndarray, **maps: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What `transform` makes of `image`, uint8 (H, W, 3), its maps, and its condition `lr`.

        `lr` is float32 (h, w, 3) in [-1, 1]; edges are 1 on 0, with values between where they are
        resized, as in the training of the original.

        Args:
            transform: knows of the smooth map `lr`.
        """
        if self.hr_factor is not None:
            image = _reduced(image, self.hr_factor)
        if min(image.shape[:2]) < transform.crop_size:  # details of `lr` are of what is shown
            image = transform.resized(image, transform.size or transform.crop_size)
        if not self.has_condition:
            return transform(image, **maps)
        made = transform(image, lr=self.condition(image), **maps)
        return made if self.edges else made | {"lr": to_values_array(made["lr"])}

    def condition(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3), or edges float32 (H, W, 3) of zeros and ones."""
        if self.edges:  # in values of [-1, 1], whose contrasts are twice those of [0, 1]
            found = _edges(image, self.up_factor or 1, contrast=2)
            return np.repeat(found.astype(np.float32)[..., None], 3, axis=2)
        if self.up_factor is None or self.up_factor == 1:
            return image
        small, (height, width) = _reduced(image, self.up_factor), image.shape[:2]
        enlargement = Image.Resampling[self.keep_mode.upper()]
        return np.asarray(Image.fromarray(small).resize((width, height), enlargement))


def _reduced(image: np.ndarray, factor: int) -> np.ndarray:
    """uint8 (H, W, 3) to (H // factor, W // factor, 3)."""
    if factor == 1:
        return image
    height, width = (max(1, side // factor) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def imscale(
    x: np.ndarray, factor: int | None, keepshapes: bool = False, keepmode: str = "bicubic"
) -> np.ndarray:
    """Values (H, W, 3) in [-1, 1] reduced by `factor`, and with `keepshapes` enlarged again.

    Sides are divided without remainder; `keepmode`, one of `ENLARGEMENTS`, is how images are
    enlarged. 256 steps of brightness are left. Without a factor, or by 1, nothing changes.
    """
    degradation = Degradation(up_factor=factor, keep_mode=keepmode)
    if factor is None or factor == 1:
        return x
    pixels = to_uint8_array(x)
    scaled = degradation.condition(pixels) if keepshapes else _reduced(pixels, factor)
    return to_values_array(scaled).astype(x.dtype)


def canny_edges(image: np.ndarray) -> np.ndarray:
    """Edges of uint8 (H, W, 3): float32 (H, W, 3), 1 on -1.

    Canny's detector (IEEE TPAMI 8(6), 1986) with a Gaussian of sigma 2 pixels. Raises `UserError`
    if scikit-image is not installed.
    """
    pixels = _edges(image).astype(np.uint8) * 255
    return np.repeat(to_values_array(pixels)[..., None], 3, axis=2)


def _edges(image: np.ndarray, factor: int = 1, contrast: int = 1) -> np.ndarray:
    """Where uint8 (H, W, 3), reduced by `factor`, has edges: bool (H, W)."""
    try:
        from skimage.feature import canny
    except ImportError:
        raise UserError(
            f"edges are found with scikit-image, which is not installed; run: {extra('data')}"
        ) from None
    gray = _reduced(image, factor) @ np.array([0.2125, 0.7154, 0.0721]) / 255  # ITU-R BT.709
    found = Image.fromarray(canny(gray * contrast, sigma=2))
    return np.asarray(found.resize(image.shape[1::-1], Image.Resampling.NEAREST))

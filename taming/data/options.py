"""How a dataset turns image files into images: one object that its constructors pass on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import TypedDict

from taming.config_values import Finite, Length, TransformConfig
from taming.errors import UserError

MOST_SIDE = 2**15
OnError = Literal["raise", "skip"]
Exif = Literal["apply", "ignore"]
# OpenCV's numbers; cv2 itself is only imported where images are resized.
INTERPOLATIONS = {"nearest": 0, "bilinear": 1, "bicubic": 2, "area": 3, "lanczos": 4}


class FileOptions(TypedDict, total=False):
    """Options of `ImageOptions` that constructors pass on as they are."""

    value_range: Annotated[Sequence[Finite], Length(2, 2)] | None
    augmentations: Sequence[TransformConfig] | None


@dataclass(frozen=True)
class ImageOptions:
    """How the files of a dataset become the images of its items.

    Raises:
        UserError: for values out of range, and for crops larger than the resized image.
    """

    size: int | None = None  # pixels of the smallest side after resizing; None, 0, -1: unchanged
    random_crop: bool = False  # crop anywhere instead of at the center
    random_flip: bool = False  # mirror half of the images left to right
    crop_size: int | None = None  # pixels of a side of the crop; None: `size`; 0, -1: no crop
    interpolation: str = "bilinear"  # of images and of smooth maps, a key of `INTERPOLATIONS`
    # "skip" logs files that cannot be used and puts the next usable item in their place.
    on_error: OnError = "raise"
    # "apply" turns images, and their maps, as the camera was held; "ignore" takes them as they are
    # in the files, as the training of the published models did.
    exif: Exif = "apply"
    # The values that are black and white in images of more than 8 bits; None: as the files say.
    value_range: Sequence[float] | None = None
    # Transforms of albumentations, as `target` and `params`, of what was resized and cropped.
    augmentations: Sequence[TransformConfig] | None = None
    source: str = ""  # where the files come from, for errors; by default the dataset's class

    def __post_init__(self) -> None:
        for name, pixels in (("size", self.size), ("crop_size", self.crop_size)):
            object.__setattr__(self, name, _side(name, pixels))
        if self.size and self.crop_size and self.crop_size > self.size:
            raise UserError(
                f"crop_size {self.crop_size} is larger than size {self.size}, to which the "
                "smallest side is resized first; give a crop_size of at most size"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation {self.interpolation!r} is not known; use "
                f"{', '.join(INTERPOLATIONS)}"
            )
        if self.on_error not in ("raise", "skip"):
            raise UserError(f"on_error {self.on_error!r} is not known; use raise or skip")
        if self.exif not in ("apply", "ignore"):
            raise UserError(f"exif {self.exif!r} is not known; use apply or ignore")
        _check_range(self.value_range)


def _side(name: str, pixels: int | None) -> int | None:
    """`pixels`, with 0 for the -1 of published configs; raises `UserError`."""
    if pixels == -1:
        return 0
    valid = isinstance(pixels, int) and not isinstance(pixels, bool) and pixels >= 0
    if pixels is not None and not valid:
        raise UserError(
            f"{name} {pixels!r} is no number of pixels; give a whole number such as 256"
        )
    if pixels is not None and pixels > MOST_SIDE:
        raise UserError(f"{name} is {pixels}; images may have {MOST_SIDE:,} pixels a side")
    return pixels


def _check_range(limits: Sequence[float] | None) -> None:
    if limits is None:
        return
    numbers = [n for n in limits if isinstance(n, int | float) and math.isfinite(n)]
    if len(limits) != 2 or len(numbers) != 2 or numbers[0] >= numbers[1]:
        raise UserError(
            f"value_range {limits!r} is no range; give the values of black and of white, such as "
            "[0, 4095]"
        )

"""Images that users give: files to arrays, and to what first stages and condition stages read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from taming.data.condition_maps import DEPTH_MODES, Depth, one_hot
from taming.data.files.bit_depth import is_deep
from taming.data.files.images import (
    BadImage,
    damage_named,
    image_mode_and_size,
    orientation_of,
    read_labels,
    read_rgb,
    turned,
)
from taming.data.files.tar_members import opened
from taming.errors import DamagedImage, UserError, absence
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.first_stage import FirstStage
from taming.pictures import Placed, Sizes, resize_and_crop, to_values_array

Content = Literal["color", "gray", "labels", "mask"]
MEASURED = tuple(mode for mode in DEPTH_MODES if mode != "L")  # 8-bit gray may be a photo


def read_pixels(path: str | Path, content: Content = "color") -> np.ndarray:
    """An image file that a user gives, as an array. No other function opens such files.

    It is turned as the camera was held (EXIF).

    Args:
        content: "color" gives uint8 (H, W, 3); "gray" uint8 (H, W, 1), or depth in [-1, 1],
            float32 (H, W, 1), for files of 16 or 32 bits and those of scripts/extract_depth.py;
            "labels" int32 (H, W), the file's numbers; "mask" uint8 (H, W).

    Raises:
        UserError: for a file that is missing; DamagedImage, if it is no image or of other content.
    """
    read, name, advice = READERS[content]
    if not Path(path).is_file():
        raise UserError(absence(name, path))
    try:
        return read(str(path))
    except BadImage as error:
        raise DamagedImage(f"{path} {error}; give {advice}") from None


def _read_gray(path: str) -> np.ndarray:
    if image_mode_and_size(path)[0] in MEASURED:
        return Depth().read(path)[..., None]
    return np.asarray(Image.fromarray(read_rgb(path)).convert("L"))[..., None]


def _read_labels(path: str) -> np.ndarray:
    labels = read_labels(path).astype(np.int32)
    if labels.ndim != 2:
        raise BadImage("is a picture in colors")
    return labels


def _read_mask(path: str) -> np.ndarray:
    """Grays from 0 to 255, black where the mask is transparent."""
    gray = np.asarray(Image.fromarray(read_rgb(path)).convert("L"))
    with damage_named(path), Image.open(opened(path)) as image:
        if is_deep(image) or not image.has_transparency_data:
            return gray
        opaque = turned(np.asarray(image.convert("RGBA"))[..., 3], orientation_of(image))
    values: np.ndarray = gray.astype(np.uint16) * opaque // 255
    return values.astype(np.uint8)


# How files are read, what they are called in errors, and what to give instead.
READERS: dict[Content, tuple[Callable[[str], np.ndarray], str, str]] = {
    "color": (read_rgb, "image", "an image file"),
    "gray": (_read_gray, "image", "an image file"),
    "labels": (_read_labels, "segmentation", "a PNG of label numbers"),
    "mask": (_read_mask, "mask", "an image that is white where pixels are kept"),
}


def read_picture(
    path: str | Path,
    channels: int = 3,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """An image file as float32 [1, channels, H, W] in [-1, 1]; `channels` 1 is gray, 3 is RGB.

    With `size` (height, width) it is resized to cover that, and the rest cut off.
    """
    pixels = read_pixels(path, content_for(channels))
    return to_input(resize_and_crop(pixels, size) if size else pixels)


def content_for(channels: int) -> Content:
    """What files have for a model of that many channels; `UserError` if they do not have them."""
    if channels not in (1, 3):
        raise UserError(f"the model reads {channels} channels, and image files have 1 or 3")
    return "color" if channels == 3 else "gray"


def to_input(pixels: np.ndarray) -> Tensor:
    """[1, C, H, W] of (H, W, C): values of uint8 pixels, floats as they are."""
    values = to_values_array(pixels) if pixels.dtype == np.uint8 else pixels
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]


@dataclass(frozen=True)
class GivenImage:
    """An image file that a user gives to a first stage: pixels or values (H, W, C), or, of a stage
    of `labels`, their numbers (H, W)."""

    pixels: np.ndarray
    labels: int | None = None

    @classmethod
    def read(cls, stage: FirstStage, path: str | Path) -> GivenImage:
        """Refuses labels that the stage does not have; see also `read_pixels`."""
        if not stage.reads_labels:
            return cls(read_pixels(path, content_for(stage.channels)))
        numbers = read_pixels(path, "labels")
        if not 0 <= numbers.min() <= numbers.max() < stage.channels:
            raise UserError(
                f"{path} has labels from {numbers.min()} to {numbers.max()}, but the model has 0 "
                f"to {stage.channels - 1}"
            )
        return cls(numbers, stage.channels)

    @property
    def size(self) -> Sizes:
        return self.pixels.shape[0], self.pixels.shape[1]

    def placed(self, how: Placed) -> GivenImage:
        """Resized and cut; numbers of labels are not mixed."""
        mixed = Image.Resampling.BILINEAR if self.labels is None else Image.Resampling.NEAREST
        return replace(self, pixels=how.of(self.pixels, mixed))

    def input(self) -> Tensor:
        """What the stage reads, [1, C, H, W]; labels one-hot."""
        labels = self.labels
        return to_input(self.pixels if labels is None else one_hot(self.pixels, labels))


def read_input(
    stage: FirstStage,
    path: str | Path,
    size: tuple[int, int] | None = None,
    reduce_to: tuple[int, int] | None = None,
    beside: Placed | None = None,
) -> Tensor:
    """What a first stage reads, [1, C, H, W]: an image, or labels one-hot.

    Labels that the stage does not have are refused; see also `read_pixels`.

    Args:
        size: (height, width) to cover, cutting off the rest.
        reduce_to: larger images are reduced until they just cover this.
        beside: how the picture was made that it is a map of; one of the image's proportions is
            resized and cut as that was.
    """
    image = GivenImage.read(stage, path)
    own = image.size
    if beside is not None:
        image = image.placed(_placed_beside(own, beside))
    if reduce_to is not None:
        image = image.placed(Placed.reduced(own, reduce_to))
    if size is not None:
        image = image.placed(Placed.covering(image.size, size))
    return image.input()


def _placed_beside(own: Sizes, image: Placed) -> Placed:
    """How a map of size `own` is made one of an image's picture; as it is, if it cannot be."""
    (height, width), (rows, columns) = own, image.before
    in_proportion = abs(height * columns - width * rows) <= max(image.before)  # to a pixel
    enough = all(side >= wanted for side, wanted in zip(own, image.size, strict=True))
    if own == image.size or not (own == image.before or (in_proportion and enough)):
        return Placed.whole(own)
    return replace(image, before=own)


def read_condition(
    model: Net2NetTransformer,
    text: str,
    size: tuple[int, int] | None = None,
    beside: Placed | None = None,
) -> Tensor:
    """A condition as `model.get_input` would give it, from a class number or an image file.

    `size` is what the file must have, in pixels (height, width); None takes any. One that is given
    `beside` an image may have that image's size, see `read_input`.

    Raises:
        UserError: for a class that the model does not have, a file of another size, labels out of
            range, or a model whose conditions are neither.
    """
    if model.n_classes is not None:
        if not text.isdecimal() or int(text) >= model.n_classes:
            raise UserError(f"the condition is a class, 0 to {model.n_classes - 1}, not '{text}'")
        return torch.tensor([int(text)])
    condition = read_input(image_condition_stage(model), text, beside=beside)
    if size is not None and tuple(condition.shape[2:]) != tuple(size):
        height, width = condition.shape[2:]
        raise UserError(
            f"{text} has {width} x {height} pixels, and the image will have {size[1]} x {size[0]}; "
            "make them equal"
        )
    return condition


def image_condition_stage(model: Net2NetTransformer) -> FirstStage:
    """The condition stage of a model of images, a first stage; `UserError` for other models."""
    if model.condition_kind != "image":
        raise UserError(f"a condition '{model.cond_stage_key}' cannot be read from a file")
    return cast(FirstStage, model.cond_stage_model)


def cut_to_tokens(images: Tensor, factor: int) -> Tensor:
    """[B, C, H, W] without the last rows and columns that fill no whole token."""
    height, width = whole_tokens((images.shape[2], images.shape[3]), factor)
    return images[:, :, :height, :width]


def whole_tokens(size: Sizes, factor: int) -> Sizes:
    """The largest size within `size` of whole tokens; `UserError` if there is not one."""
    height, width = (side // factor * factor for side in size)
    if not height or not width:
        pixels = f"{size[1]} x {size[0]}"
        raise UserError(f"the image has {pixels} pixels, fewer than the {factor} of one token")
    return height, width

"""What a person gives becomes what a model reads: image files, classes, condition files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from taming.data.condition_maps import DEPTH_MODES, Depth
from taming.data.files.images import BadImage, image_mode_and_size, read_rgb
from taming.errors import UserError
from taming.modules.misc.coord import CoordStage
from taming.pictures import to_values_array
from taming.sampling.engine import Request
from taming.sampling.sizes import condition_indices, coordinate_map

MEASURED = tuple(mode for mode in DEPTH_MODES if mode != "L")  # an 8-bit grey may be a picture


def read_picture(path: str | Path, channels: int = 3) -> Tensor:
    """An image file as float32 [1, channels, H, W] in [-1, 1]; `channels` 1 is grey, 3 is RGB.

    With 1, files of 16 or 32 bits, and those of `scripts/extract_depth.py`, are depth.

    Raises:
        UserError: for a file that is no image, and for other numbers of channels.
    """
    if channels not in (1, 3):
        raise UserError(f"the model reads {channels} channels, and image files have 1 or 3")
    if not Path(path).is_file():
        raise UserError(f"there is no image {path}")
    try:
        if channels == 1 and image_mode_and_size(str(path))[0] in MEASURED:
            values = Depth().read(str(path))[..., None]
        else:
            values = to_values_array(_in_channels(read_rgb(str(path)), channels))
    except BadImage as error:
        raise UserError(f"{path} {error}; give an image file") from None
    return torch.from_numpy(values).permute(2, 0, 1)[None].contiguous()


def _in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    return pixels if channels == 3 else np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def read_input(stage: Any, path: str | Path) -> Tensor:
    """What a first stage reads, [1, C, H, W]: a picture, or labels one-hot; raises `UserError`."""
    if stage.reads_labels:
        return _read_labels(Path(path), stage.channels)
    return read_picture(path, stage.channels)


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Scaled to cover `size` (height, width), the rest cut off on both sides alike."""
    height, width = size
    scale = max(height / picture.shape[2], width / picture.shape[3])
    if scale != 1:
        new = [
            max(side, round(scale * old)) for side, old in zip(size, picture.shape[2:], strict=True)
        ]
        picture = F.interpolate(picture, new, mode="bilinear", antialias=True, align_corners=False)
    top, left = (picture.shape[2] - height) // 2, (picture.shape[3] - width) // 2
    return picture[:, :, top : top + height, left : left + width]


def cut_to_tokens(picture: Tensor, factor: int) -> Tensor:
    """Without the last rows and columns that would fill no whole token.

    Raises:
        UserError: where nothing would be left.
    """
    height, width = (side // factor * factor for side in picture.shape[2:])
    if not height or not width:
        size = f"{picture.shape[3]} x {picture.shape[2]}"
        raise UserError(f"the image has {size} pixels, fewer than the {factor} of one token")
    return picture[:, :, :height, :width]


def read_condition(model: Any, text: str, size: tuple[int, int] | None = None) -> Tensor:
    """A condition as `model.get_input` would give it, from a class number or an image file.

    A model of segmentations reads an image of label numbers (grey or with a palette), others read
    pictures. `size` is the image's, in pixels (height, width); None takes files of any size.

    Raises:
        UserError: for a class that the model does not have, a file of another size, or labels out
            of range.
    """
    classes = getattr(model.cond_stage_model, "n_classes", None)
    if classes is not None:
        if not text.isdecimal() or int(text) >= classes:
            raise UserError(f"the condition is a class, 0 to {classes - 1}, not '{text}'")
        return torch.tensor([int(text)])
    stage = model.cond_stage_model
    if not hasattr(stage, "encoder"):
        raise UserError(f"a condition '{model.cond_stage_key}' cannot be read from a file")
    condition = read_input(stage, text)
    if size is not None and tuple(condition.shape[2:]) != tuple(size):
        height, width = condition.shape[2:]
        raise UserError(
            f"{text} has {width} x {height} pixels, and the image will have {size[1]} x {size[0]}; "
            "make them equal"
        )
    return condition


def _read_labels(path: Path, n_labels: int) -> Tensor:
    """One-hot float32 [1, n_labels, H, W]."""
    if not path.is_file():
        raise UserError(f"there is no segmentation {path}")
    try:
        with Image.open(path) as image:
            labels = torch.from_numpy(np.array(image).astype(np.int64))
    except (OSError, ValueError):
        raise UserError(f"{path} is no image; give a PNG of label numbers") from None
    if labels.dim() != 2:
        raise UserError(f"{path} is a picture in colours; give a PNG of label numbers")
    if not 0 <= int(labels.min()) <= int(labels.max()) < n_labels:
        raise UserError(
            f"{path} has labels from {int(labels.min())} to {int(labels.max())}, but the model "
            f"has 0 to {n_labels - 1}"
        )
    return F.one_hot(labels, n_labels).permute(2, 0, 1)[None].float()


def request_for(
    model: Any,
    c: Tensor | None,
    number: int,
    shape: tuple[int, int],
    known: Tensor | None = None,
) -> Request:
    """The request for one image of `shape` (in tokens) under a condition of batch size 1.

    `c` is what `model.get_input` gives; it may be None where the model needs none.

    Raises:
        UserError: where it does.
    """
    if model.be_unconditional:
        return Request(number, (model.sos_token,), known=known)
    if c is None and isinstance(model.cond_stage_model, CoordStage):
        return Request(number, condition=coordinate_map(model, shape), known=known)
    if c is None:
        raise UserError(f"this model draws for a given '{model.cond_stage_key}'; give one")
    indices = condition_indices(model, c)[0].cpu()
    if indices.dim() == 2:
        return Request(number, condition=indices, known=known)
    label = int(c[0]) if hasattr(model.cond_stage_model, "n_classes") else None
    return Request(number, tuple(indices.tolist()), label, known=known)

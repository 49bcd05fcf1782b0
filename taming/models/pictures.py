"""What a condition looks like: pictures of labels, maps and layouts for logging."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


def condition_pictures(
    cond_stage: Any, c: Tensor, quant: Tensor, size: tuple[int, int]
) -> dict[str, Tensor]:
    """`conditioning` and, where the stage decodes, `conditioning_rec`: [B, 1 or 3, H, W].

    `c` is what the data gave: labels [B] are written out, images [B, C, H, W] are shown (with a
    random colour per channel beyond three); token lists [B, n] have no picture here.
    """
    if c.dim() < 2:
        return {"conditioning": label_pictures([str(int(label)) for label in c], size).to(quant)}
    if c.dim() != 4:
        return {}
    pictures = {"conditioning": c}
    if hasattr(cond_stage, "decode"):
        pictures["conditioning_rec"] = cond_stage.decode(quant)
    return {name: _as_rgb(cond_stage, picture) for name, picture in pictures.items()}


def _as_rgb(cond_stage: Any, x: Tensor) -> Tensor:
    if x.shape[1] in (1, 3):
        return x
    labels = F.one_hot(x.argmax(dim=1), num_classes=x.shape[1]).permute(0, 3, 1, 2)
    return cond_stage.to_rgb(labels.to(x))


def label_pictures(labels: list[str], size: tuple[int, int]) -> Tensor:
    """Each text, black on white, as [B, 3, H, W] in [-1, 1]."""
    height, width = size
    font = ImageFont.load_default(size=max(8, height // 4))
    pictures = []
    for label in labels:
        image = Image.new("L", (width, height), 255)
        centre = (width / 2, height / 2)
        ImageDraw.Draw(image).text(centre, label, fill=0, font=font, anchor="mm")
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pictures.append(pixels.reshape(1, height, width).expand(3, -1, -1))
    return torch.stack(pictures) / 127.5 - 1

"""Samples as PNG files: a folder that can be continued."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor
from tqdm import tqdm

from taming.errors import UserError
from taming.sampling.engine import Sample, sample_images
from taming.sampling.requests import requests_for
from taming.sampling.settings import SampleSettings

# The text entry of a PNG that says how it was drawn, as JSON.
RECORD = "sampling"
_NUMBERED = re.compile(r"[0-9]{6,}\.png")


def to_pillow(image: Tensor) -> Image.Image:
    """A float image (C, H, W) in [-1, 1], C = 1 (grey), 3 or 4, as a Pillow image.

    Raises:
        UserError: for any other number of channels.
    """
    if image.shape[0] not in (1, 3, 4):
        raise UserError(f"the model draws {image.shape[0]} channels; a PNG has 1, 3 or 4 of them")
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).cpu().numpy()
    pixels = pixels.astype(np.uint8)  # (H, W, C)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


class SampleFolder:
    """Samples at `root/[class/]NNNNNN.png`, each with the settings that made it.

    Args:
        root: made when the first sample is written.
        record: the settings; JSON values.
    """

    def __init__(self, root: Path, record: Mapping[str, Any]) -> None:
        self.root, self.record = root, dict(record)

    def path(self, label: int | None, number: int) -> Path:
        """Where a sample is, or will be."""
        return self._of(label) / f"{number:06}.png"

    def _of(self, label: int | None) -> Path:
        return self.root if label is None else self.root / str(label)

    def finished(self, label: int | None) -> set[int]:
        """Numbers of a label's samples that are already here.

        Raises:
            UserError: if they were drawn with other settings.
        """
        paths = [p for p in self._of(label).glob("*.png") if _NUMBERED.fullmatch(p.name)]
        if paths:
            self._check_settings(min(paths))
        return {int(path.stem) for path in paths}

    def _check_settings(self, path: Path) -> None:
        try:
            with Image.open(path) as image:
                found = json.loads(image.info.get(RECORD, "{}"))
        except (OSError, ValueError):
            raise UserError(f"{path} is no intact PNG; remove it and try again") from None
        for key, value in self.record.items():
            if found.get(key, value) != value:
                raise UserError(
                    f"{path} was drawn with {key} {found[key]}, not {value}: choose another "
                    "--outdir, or remove the old samples"
                )

    def save(self, sample: Sample) -> None:
        """Write a sample; a file is either complete or not there.

        Raises:
            UserError: where it cannot be written, as on a full disk.
        """
        info = PngImagePlugin.PngInfo()
        named = {**self.record, "class": sample.label, "number": sample.number}
        info.add_text(RECORD, json.dumps(named))
        path = self.path(sample.label, sample.number)
        partial = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pillow(sample.image).save(partial, format="PNG", pnginfo=info)
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise UserError(
                f"cannot write {path} ({error.strerror or error}); finished samples stay, and the "
                "same command goes on with the rest"
            ) from None


def fill_folder(
    folder: SampleFolder,
    model: Any,
    labels: Sequence[int | None],
    num_samples: int,
    settings: SampleSettings,
    *,
    batch_size: int = 25,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> int:
    """Draw what `folder` lacks of `num_samples` images of each label, with a progress bar.

    Returns how many images were drawn. Raises `UserError` as `SampleFolder` does.
    """
    wanted = len(labels) * num_samples
    present = sum(n < num_samples for label in labels for n in folder.finished(label))
    requests = requests_for(model, labels, num_samples, folder.finished)
    with tqdm(total=wanted, initial=present, unit="image", miniters=0) as bar:

        def show(token: int, tokens: int) -> None:
            bar.set_postfix_str(f"token {token}/{tokens}", refresh=False)
            bar.update(0)

        for sample in sample_images(model, requests, settings, batch_size, seed, dtype, show):
            folder.save(sample)
            bar.update()
    return wanted - present

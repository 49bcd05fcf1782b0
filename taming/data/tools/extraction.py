"""Maps that a network makes of images: depth (MiDaS) and labels (DeepLab), as PNGs.

The networks are others': from torch hub, or from files.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from taming.data.files.images import BadImage, read_rgb
from taming.errors import UserError

log = logging.getLogger(__name__)
Network = Callable[[Tensor], Any]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_BGR_MEAN = (104.008, 116.669, 122.675)  # of pixels 0..255, blue first
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w./-]+)?")
FILE_ENDINGS = (".py", ".pt", ".pth", ".ts", ".jit", ".ckpt")
MIDAS_SIDE, MIDAS_MULTIPLE = 384, 32
DEEPLAB_SIDE = 513


def load_network(
    model: str, entry: str, weights: str | None, device: torch.device, **hub_options: Any
) -> nn.Module:
    """The network `model`, ready for use.

    `model` is a TorchScript file; a Python file with a function `entry` that returns the network;
    a folder with a `hubconf.py` that has it; or a torch hub name (owner/repository[:version]),
    whose `entry` is called with `hub_options`. `weights` is a checkpoint to load into it. Raises
    `UserError` if there is no such thing.
    """
    try:
        network = _build(model, entry, hub_options if weights is None else {})
        if weights is not None:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            network.load_state_dict(state.get("state_dict", state))
    except Exception as error:  # whatever the code of others does
        raise UserError(
            f"--model {model} cannot be loaded ({_reason(error)}); give a TorchScript file, a .py "
            "file or hub folder with the function --entry, or a torch hub name owner/repository"
        ) from error
    return network.to(device).eval()


def _reason(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, URLError) or "internet connection" in text:
        return (
            "torch hub cannot be reached and has no copy of it here: get the repository where "
            "there is a network, and give its folder and --weights"
        )
    return text


def _build(model: str, entry: str, hub_options: Mapping[str, Any]) -> nn.Module:
    path = Path(model).expanduser()
    if path.is_dir():
        return torch.hub.load(str(path), entry, source="local")
    if path.suffix == ".py" and path.is_file():
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None  # it ends in .py
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, entry)()
    if path.is_file():
        return torch.jit.load(str(path), map_location="cpu")
    if not HUB_NAME.fullmatch(model) or path.suffix in FILE_ENDINGS:
        raise ValueError("there is no such file or folder")
    return torch.hub.load(model, entry, trust_repo=True, **hub_options)


def _single_output(output: Any) -> Tensor:
    """The prediction among what networks return: a tensor, a list of them, or a dict with `out`."""
    if isinstance(output, Mapping):
        output = output.get("out", next(iter(output.values())))
    return output[0] if isinstance(output, list | tuple) else output


def _tensor(image: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float()  # (1, 3, H, W)


def within(height: int, width: int, side: int, multiple: int = 1) -> tuple[int, int]:
    """(height, width) of the same shape that fits into a square, in multiples of `multiple`."""
    scale = side / max(height, width)
    return tuple(  # type: ignore[return-value]
        max(multiple, min(round(length * scale / multiple), side // multiple) * multiple)
        for length in (height, width)
    )


@torch.inference_mode()
def depth_of(network: Network, image: np.ndarray, device: torch.device) -> np.ndarray:
    """uint8 (H, W, 3) to relative inverse depth, float32 (H, W), as MiDaS (arXiv 1907.01341) sees
    images: at most 384 pixels a side, normalized as for ImageNet."""
    height, width = size = image.shape[:2]
    mean, std = (
        torch.tensor(v, device=device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    x = (_tensor(image, device) / 255 - mean) / std
    x = F.interpolate(x, within(height, width, MIDAS_SIDE, MIDAS_MULTIPLE), mode="bicubic")
    depth = _single_output(network(x)).float()
    depth = depth.reshape(1, 1, *depth.shape[-2:])
    return F.interpolate(depth, size, mode="bicubic")[0, 0].cpu().numpy()


@torch.inference_mode()
def labels_of(network: Network, image: np.ndarray, device: torch.device) -> np.ndarray:
    """uint8 (H, W, 3) to the likeliest label of each pixel, uint8 (H, W), as DeepLab v2 (arXiv
    1606.00915) sees images: blue first, less the mean, at most 513 pixels a side."""
    height, width = size = image.shape[:2]
    mean = torch.tensor(CAFFE_BGR_MEAN, device=device)[:, None, None]
    x = _tensor(image[..., ::-1], device) - mean
    if max(size) > DEEPLAB_SIDE:
        x = F.interpolate(x, within(height, width, DEEPLAB_SIDE), mode="bilinear")
    logits = _single_output(network(x)).float()  # (1, n_labels, h, w)
    if logits.dim() != 4 or logits.shape[1] > 256:
        raise UserError(
            f"--model gives {tuple(logits.shape)}; a segmentation network gives (1, n_labels, "
            "height, width) with at most 256 labels"
        )
    return F.interpolate(logits, size, mode="bilinear")[0].argmax(0).to(torch.uint8).cpu().numpy()


def depth_picture(depth: np.ndarray) -> Image.Image:
    """(H, W) as RGBA: the four bytes of each little-endian float32."""
    pixels = np.ascontiguousarray(depth, dtype="<f4").view(np.uint8)
    return Image.fromarray(pixels.reshape(*depth.shape, 4))


@dataclass(frozen=True)
class Report:
    """What `extract` has done; `bad` holds a sentence per image that could not be read."""

    written: int
    already: int
    bad: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.written} written, {self.already} were there already, "
            f"{len(self.bad)} images could not be read"
        )


def extract(
    names: Sequence[str],
    images: str | Path,
    output: str | Path,
    picture_of: Callable[[np.ndarray], Image.Image],
) -> Report:
    """Write `output/<name>.png` for each image `images/<name>` that has none yet.

    A map is there whole or not at all, so an interrupted call can be repeated. Images that cannot
    be read are logged and passed over.
    """
    written, already, bad = 0, 0, []
    for name in tqdm(names, f"to {output}", unit=" images", disable=None):
        target = (Path(output) / name).with_suffix(".png")
        if target.is_file():
            already += 1
            continue
        path = os.path.join(images, name)
        try:
            image = read_rgb(path)
        except BadImage as error:
            bad.append(f"{path} {error}")
            log.warning("skipped: %s", bad[-1])
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.part")
        picture_of(image).save(partial, format="PNG")
        os.replace(partial, target)
        written += 1
    return Report(written, already, tuple(bad))

"""Maps that a network from torch hub or a file computes: depth (MiDaS) and labels (DeepLab)."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn
from tqdm import tqdm

from taming.atomic_files import atomic_path
from taming.checkpoint.formats import read_content
from taming.checkpoint.runs import find_run
from taming.checkpoint.weights import load_weights, weights_for
from taming.command_line import flag
from taming.data.condition_maps import depth_to_rgba
from taming.data.files.find import relative_names
from taming.data.files.images import ORIENTATION_TAG, BadImage, read_with_orientation, turned
from taming.errors import UserError, absence, interruptible
from taming.pictures import IMAGENET_MEAN, IMAGENET_STD
from taming.user_files import file_version, with_home
from taming.words import counted

log = logging.getLogger(__name__)
Network = Callable[[Tensor], Any]
CAFFE_BGR_MEAN = (104.008, 116.669, 122.675)  # of pixels 0..255, blue first
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w./-]+)?")
FILE_ENDINGS = (".py", ".pt", ".pth", ".ts", ".jit", ".ckpt")
MIDAS_SIDE, MIDAS_MULTIPLE = 384, 32
DEEPLAB_SIDE = 513
BACK = {6: 8, 8: 6}  # the orientation that undoes another one; the others undo themselves


@dataclass(frozen=True)
class NetworkOptions:
    """Where a network comes from, and where it runs."""

    model: str = flag("", "torch hub name, folder with hubconf.py, .py file, or TorchScript file")
    entry: str = flag("", "function of --model that makes it")
    weights: str | None = flag(None, "checkpoint to load into it")
    device: str = flag("auto", "auto, cuda, cuda:1, mps or cpu")


def load_network(options: NetworkOptions, device: torch.device, **hub_options: Any) -> nn.Module:
    """The network `options.model` on `device`, ready for use.

    A model is a TorchScript file; a Python file with a function `entry` that returns the network; a
    folder with a `hubconf.py` that has it; or a torch hub name (owner/repository[:version]), whose
    `entry` is called with `hub_options`.

    Raises:
        UserError: if there is no such model, entry or checkpoint.
    """
    try:
        network = _build(options, hub_options if options.weights is None else {})
    except Exception as error:  # the code of others may raise anything
        raise UserError(
            f"--model {options.model} cannot be loaded ({_reason(error)}); give a TorchScript "
            "file, a .py file or hub folder with the function --entry, or a torch hub name "
            "owner/repository"
        ) from error
    if options.weights is not None:
        try:
            _load_weights(network, options.weights)
        except UserError as error:
            raise UserError(f"--weights: {error}") from None
    return network.to(device).eval()


def _load_weights(network: nn.Module, path: str) -> None:
    file, own = find_run(path).checkpoint, network.state_dict(keep_vars=True)
    state, _ = weights_for(own, read_content(file), file)
    # Files from before torch 0.4.1 have no such counts, which nothing here reads.
    counts = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
    load_weights(network, {**counts, **state}, source=file)


def _reason(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    if text.startswith("PytorchStreamReader"):
        return "it is no TorchScript file, or damaged"
    if not isinstance(error, URLError) and "internet connection" not in text:
        return text
    return (
        "torch hub cannot be reached and has no copy of it here: get the repository where there is "
        "a network, and give its folder and --weights"
    )


def _build(options: NetworkOptions, hub_options: Mapping[str, Any]) -> nn.Module:
    model, entry = options.model, options.entry
    path = with_home(Path(model))
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
    """The prediction among what networks return: a tensor, a list, or a dict with `out`."""
    if isinstance(output, Mapping):
        output = output.get("out", next(iter(output.values())))
    return output[0] if isinstance(output, list | tuple) else output


def _tensor(image: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float()  # (1, 3, H, W)


def within(height: int, width: int, side: int, multiple: int = 1) -> tuple[int, int]:
    """(height, width) of the same shape that fits into a square, both multiples of `multiple`."""
    scale = side / max(height, width)
    return tuple(  # type: ignore[return-value]
        max(multiple, min(round(length * scale / multiple), side // multiple) * multiple)
        for length in (height, width)
    )


@torch.inference_mode()
def depth_of(network: Network, image: np.ndarray, device: torch.device) -> np.ndarray:
    """Relative inverse depth, float32 (H, W), of an image uint8 (H, W, 3).

    As MiDaS (arXiv 1907.01341) reads images: at most 384 pixels a side, normalized as ImageNet's.
    """
    height, width = size = image.shape[:2]
    statistics = torch.tensor((IMAGENET_MEAN, IMAGENET_STD), device=device)
    mean, std = statistics[..., None, None]  # (3, 1, 1) each
    x = (_tensor(image, device) / 255 - mean) / std
    x = F.interpolate(x, within(height, width, MIDAS_SIDE, MIDAS_MULTIPLE), mode="bicubic")
    depth = _single_output(network(x)).float()
    depth = depth.reshape(1, 1, *depth.shape[-2:])
    return F.interpolate(depth, size, mode="bicubic")[0, 0].cpu().numpy()


@torch.inference_mode()
def labels_of(network: Network, image: np.ndarray, device: torch.device) -> np.ndarray:
    """The likeliest label of each pixel, uint8 (H, W), of an image uint8 (H, W, 3).

    As DeepLab v2 (arXiv 1606.00915) reads images: BGR, less the mean, at most 513 pixels a side.
    Raises `UserError` if the network does not return logits (1, n_labels, h, w).
    """
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
    """Depth (H, W) as an RGBA image; see `depth_to_rgba`."""
    return Image.fromarray(depth_to_rgba(depth))


@dataclass
class Report:
    """How many maps `extract` wrote; `bad` holds a sentence per image that could not be read."""

    written: int = 0
    already: int = 0
    bad: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        unread = f"{counted(len(self.bad), 'image')} could not be read"
        return f"{self.written} written, {self.already} were there already, {unread}"


def image_names(folder: str) -> list[str]:
    """Names of the images below a folder, relative to it.

    Raises:
        UserError: if there are none, or two whose maps would be one file.
    """
    if not os.path.isdir(folder):
        raise UserError(f"--images: {absence('folder', folder)}")
    names = relative_names(folder)
    if not names:
        raise UserError(f"--images {folder} has no images")
    by_map: dict[Path, str] = {}
    for name in names:
        if (other := by_map.setdefault(_map_name(name), name)) != name:
            raise UserError(
                f"--images {folder} has {other} and {name}, whose maps would both be "
                f"{_map_name(name)}; rename one of them"
            )
    return names


def _map_name(name: str) -> Path:
    return Path(name).with_suffix(".png")


@interruptible("written maps stay, and the same command goes on with the rest")
def extract(
    names: Iterable[str],
    images: str | Path,
    output: str | Path,
    picture_of: Callable[[np.ndarray], Image.Image],
    upright: bool = True,
) -> Report:
    """Write `output/<name>.png` for each image `images/<name>` that has none yet, or one of another
    content of that image, as the map's text says; a map without such a text stays.

    `picture_of` makes the map of an image uint8 (H, W, 3), which stands `upright` as its EXIF data
    say. The file has the image's own orientation: whether both are turned or neither, they fit.
    An interrupted call can be repeated. Images that cannot be read are left out, see `Report`.
    """
    report = Report()
    for name in tqdm(names, f"to {output}", unit=" images", disable=None):
        target, path = Path(output) / _map_name(name), os.path.join(images, name)
        if target.is_file() and not _is_of_another(target, path):
            report.already += 1
            continue
        try:
            pixels, orientation = read_with_orientation(path)
        except BadImage as error:
            report.bad.append(f"{path} {error}")
            continue
        if upright and orientation != 1:
            made = np.asarray(picture_of(turned(pixels, orientation)))
            picture = Image.fromarray(turned(made, BACK.get(orientation, orientation)))
        else:
            picture = picture_of(pixels)
        exif = picture.getexif()
        exif.update({ORIENTATION_TAG: orientation} if orientation != 1 else {})
        with atomic_path(target, advice="make room and run again") as partial:
            picture.save(partial, format="PNG", exif=exif, pnginfo=_text_of(path))
        report.written += 1
    return report


SOURCE = "Image"  # the text of a map that says of which image it is


def _text_of(path: str) -> PngInfo:
    """The size of an image's file, its time of change, and the SHA-256 of its content."""
    text = PngInfo()
    text.add_text(SOURCE, " ".join(map(str, (*file_version(path), _hash(path)))))
    return text


def _hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _is_of_another(target: Path, path: str) -> bool:
    """Whether a map was made of another image of that name. A copied image has another time, but
    the same content."""
    try:
        with Image.open(target) as picture:
            said = str(picture.info.get(SOURCE, "")).split()
        size, changed = map(str, file_version(path))
    except OSError:  # whatever is there is not replaced
        return False
    if len(said) != 3 or said[:2] == [size, changed]:
        return False
    return said[0] != size or said[2] != _hash(path)

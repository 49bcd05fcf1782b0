"""Images per second and core: ImageNet-like JPEGs, 500 x 375, to batches of 256 x 256.

    python benchmarks/data.py [--rounds 10]

The baseline is the usual way: Pillow decodes, albumentations resizes and crops, numpy scales.
Names that end in `_scaled` include what the model does first, on its device: channels first, and
for bytes the scaling; they are compared to `plain_scaled`. `large` are JPEGs of 1600 x 1200, where
decoding at a part of the size is possible.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import torch
from measure import interleaved, write_results
from PIL import Image
from torch.utils.data import Dataset, default_collate

from taming.command_line import Parser
from taming.data.base import ImagePaths
from taming.data.examples.rendering import render
from taming.data.loading import set_loading
from taming.errors import command
from taming.models.codes import channels_first

SIZE = 256
KINDS = {"imagenet": (375, 500), "large": (1200, 1600)}


def write_jpegs(folder: Path, kind: str, count: int) -> list[str]:
    """Rendered scenes, with grain so that they are as many bytes as photographs (0.1 MB)."""
    folder.mkdir()
    paths = [str(folder / f"{number}.jpg") for number in range(count)]
    for number, path in enumerate(paths):
        image = render(number, *KINDS[kind]).image
        grain = np.random.RandomState(number).normal(0, 12, image.shape)
        Image.fromarray((image + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


class Plain(Dataset[Any]):
    """The usual way, written out: this is what is compared, so it shares no code with `taming`."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        steps = [albumentations.SmallestMaxSize(SIZE), albumentations.CenterCrop(SIZE, SIZE)]
        self.steps = albumentations.Compose(steps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.array(Image.open(self.paths[index]).convert("RGB"))
        image = self.steps(image=image)["image"]
        return {
            "image": (image / 127.5 - 1.0).astype(np.float32),
            "file_path_": self.paths[index],
        }


def batch_of(dataset: Any, count: int) -> Callable[[], Any]:
    return lambda: default_collate([dataset[index] for index in range(count)])


def candidates(paths: list[str]) -> dict[str, Callable[[], Any]]:
    fast = ImagePaths(paths, SIZE)
    set_loading(fast, fast_decode=True, image_bytes=True)
    count = len(paths)
    plain, load = batch_of(Plain(paths), count), batch_of(fast, count)
    return {
        "plain": plain,
        "ours": batch_of(ImagePaths(paths, SIZE), count),
        "bytes": load,
        "plain_scaled": lambda: channels_first(plain()["image"]),
        "bytes_scaled": lambda: channels_first(load()["image"]),
    }


def baseline(name: str) -> str:
    """The candidate that gets as far in the usual way."""
    return "plain_scaled" if name.endswith("_scaled") else "plain"


def measure_rates(paths: list[str], rounds: int) -> dict[str, Any]:
    seconds = interleaved(candidates(paths), torch.device("cpu"), rounds)
    rates = {name: len(paths) / times["median"] for name, times in seconds.items()}
    ratios = {name: rate / rates[baseline(name)] for name, rate in rates.items()}
    size = sum(Path(path).stat().st_size for path in paths) / len(paths)
    return {
        "bytes_per_file": round(size),
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio_to_plain": {name: round(ratio, 2) for name, ratio in ratios.items()},
    }


@command
def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--no_write", action="store_true", help="print the figures only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"batch_size": args.batch_size, "rounds": args.rounds}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            paths = write_jpegs(Path(folder, kind), kind, args.batch_size)
            results[kind] = measure_rates(paths, args.rounds)
            print(kind, results[kind])
    if not args.no_write:
        print(write_results("data", torch.device("cpu"), results))


if __name__ == "__main__":
    main()

"""Encode and decode the images of a folder with a first stage, a run's own or a transformer's.

    python scripts/reconstruct.py -r logs/<run> FOLDER

Reconstructions, as PNGs under the images' names, and `metrics.json` go to
`<run>/reconstructions/<folder's name>/<global step>/`. A first stage of segmentations reads and
writes PNGs of label numbers, and one of depth reads what scripts/extract_depth.py writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from taming.atomic_files import atomic_path, check_place
from taming.command_line import flag, from_flags, parse, parse_size
from taming.data.files.find import find_images
from taming.errors import UserError, command
from taming.evaluation.tasks.reconstruction import score_first_stage
from taming.models.first_stage import FirstStage
from taming.pictures import HALF_RANGE
from taming.sampling.arguments import RunArguments, make_parser, require_positive
from taming.sampling.conditions import cut_to_tokens, read_input
from taming.sampling.folder import ADVICE, save_png
from taming.sampling.load import load_first_stage

Named = tuple[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of the run."""

    size: tuple[int, int] | None = flag(
        None,
        "resize and crop to height,width in pixels, or to a square (default: as it is)",
        parse=parse_size,
    )
    num_images: int | None = flag(None, "the first n images (default: all)", "-n")
    batch_size: int = flag(4, "images of equal size at once")

    def __post_init__(self) -> None:
        require_positive(num_images=self.num_images, batch_size=self.batch_size)


def read_arguments(argv: Sequence[str] | None) -> tuple[RunArguments, Arguments, Path]:
    parser = make_parser("Reconstruct the images of a folder.", Arguments)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)  # of all scripts
    parser.add_argument("folder", type=Path, help="of images, at any depth")
    args, overrides = parse(parser, argv)
    run = from_flags(RunArguments, args, overrides=tuple(overrides))
    return run, from_flags(Arguments, args), args.folder


def list_images(folder: Path, num_images: int | None) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    paths = list(islice(find_images(folder), num_images))
    if not paths:
        raise UserError(f"there are no images in {folder}")
    return paths


def read_images(
    model: FirstStage, folder: Path, paths: Iterable[str], size: tuple[int, int] | None
) -> Iterator[Named]:
    """Paths below the folder, and images [1, C, H, W] in whole tokens."""
    for path in paths:
        x = read_input(model, path, size)
        yield str(Path(path).relative_to(folder)), cut_to_tokens(x, model.downsampling_factor)


def batches(images: Iterable[Named], size: int) -> Iterator[tuple[list[str], Tensor]]:
    """Names and [B, C, H, W] of consecutive images of equal size."""
    for _, group in groupby(images, key=lambda named: named[1].shape):
        while batch := list(islice(group, size)):
            yield [name for name, _ in batch], torch.cat([x for _, x in batch])


def reconstruct(
    model: FirstStage, images: Iterable[Named], batch_size: int, root: Path
) -> dict[str, Any]:
    """Write the reconstructions of all images; their scores."""
    names: list[str] = []

    def loaded() -> Iterator[Tensor]:
        for batch, x in batches(images, batch_size):
            names[:] = batch
            yield x

    def write(images: Tensor, reconstructions: Tensor) -> None:
        if model.reads_labels:  # label numbers are the PNG's bytes
            reconstructions = reconstructions.argmax(1, keepdim=True) / HALF_RANGE - 1
        for name, image in zip(names, reconstructions, strict=True):
            save_png(image, root / (name if name.endswith(".png") else name + ".png"))

    return score_first_stage(model, loaded(), on_batch=write)


def summary(scores: Mapping[str, Any]) -> str:
    if "pixel_accuracy" in scores:
        quality = f"{scores['pixel_accuracy']:.1%} of the pixels have their label"
    else:
        quality = f"L1 {scores['l1']:.4f} (images in [-1, 1]), {scores['psnr']:.1f} dB"
    return (
        f"{quality}, codebook usage {scores['codebook_usage']:.1%}, perplexity "
        f"{scores['codebook_perplexity']:.1f}"
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments, own, folder = read_arguments(argv)
    paths = list_images(folder, own.num_images)
    model, run, step = load_first_stage(
        arguments.resume, arguments.base, arguments.device, arguments.overrides
    )
    root = Path(arguments.outdir or run.folder / "reconstructions" / folder.resolve().name)
    root = root / str(step)
    check_place(root, "choose another --outdir")
    with tqdm(paths, unit="image") as bar:
        scores = reconstruct(model, read_images(model, folder, bar, own.size), own.batch_size, root)
    made = {
        "checkpoint": str(run.checkpoint),
        "global_step": step,
        "folder": str(folder.resolve()),
        "size": own.size,
    }
    with atomic_path(root / "metrics.json", advice=ADVICE) as partial:
        partial.write_text(json.dumps({**scores, **made}, indent=2) + "\n")
    print(summary(scores))
    print(f"{scores['images']} reconstructions and metrics.json are in {root}")


if __name__ == "__main__":
    main()

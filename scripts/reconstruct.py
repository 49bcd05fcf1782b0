"""Encode and decode the images of a folder with a first stage, a run's own or a transformer's.

    python scripts/reconstruct.py -r logs/<run> FOLDER

Reconstructions, as PNGs under the images' names, and `metrics.json` go to
`<run>/reconstructions/<folder's name>/<global step>/`. A first stage of segmentations reads and
writes PNGs of label numbers, and one of depth reads what scripts/extract_depth.py writes.
"""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from taming.atomic_files import atomic_path
from taming.command_line import parse
from taming.data.files.find import find_images
from taming.errors import UserError, command
from taming.evaluation.tasks.models import score_first_stage
from taming.sampling.arguments import make_parser
from taming.sampling.conditions import cut_to_tokens, read_input
from taming.sampling.folder import ADVICE, check_place, save_png
from taming.sampling.load import load_first_stage

Named = tuple[str, Tensor]


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = make_parser("Reconstruct the images of a folder.")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)  # of all scripts
    parser.add_argument("folder", help="of images, at any depth")
    parser.add_argument(
        "--size", type=int, help="resize and crop to a square of so many pixels (default: as it is)"
    )
    parser.add_argument("-n", "--num_images", type=int, help="the first n images (default: all)")
    parser.add_argument("--batch_size", type=int, default=4, help="of equal images (default 4)")
    return parse(parser, argv)


def list_images(args: Namespace) -> list[str]:
    for name in ("num_images", "size", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    if not Path(args.folder).is_dir():
        raise UserError(f"there is no folder {args.folder}")
    paths = list(islice(find_images(args.folder), args.num_images))
    if not paths:
        raise UserError(f"there are no images in {args.folder}")
    return paths


def read_images(args: Namespace, model: Any, paths: Iterable[str]) -> Iterator[Named]:
    """Paths below the folder, and images [1, C, H, W] in whole tokens."""
    for path in paths:
        picture = read_input(model, path, args.size and (args.size, args.size))
        name = str(Path(path).relative_to(args.folder))
        yield name, cut_to_tokens(picture, model.downsampling_factor)


def batches(images: Iterable[Named], size: int) -> Iterator[tuple[list[str], Tensor]]:
    """Names and [B, C, H, W] of consecutive images of equal size."""
    for _, group in groupby(images, key=lambda named: named[1].shape):
        while batch := list(islice(group, size)):
            yield [name for name, _ in batch], torch.cat([picture for _, picture in batch])


def reconstruct(args: Namespace, model: Any, paths: Sequence[str], root: Path) -> dict[str, Any]:
    """Write the reconstructions of all images; their scores."""
    names: list[str] = []

    def loaded() -> Iterator[dict[str, Tensor]]:
        for batch, pictures in batches(read_images(args, model, bar), args.batch_size):
            names[:] = batch
            yield {"image": pictures.permute(0, 2, 3, 1)}

    def write(images: Tensor, reconstructions: Tensor) -> None:
        if model.reads_labels:
            reconstructions = reconstructions.argmax(1, keepdim=True) / 127.5 - 1  # as bytes
        for name, image in zip(names, reconstructions, strict=True):
            save_png(image, root / (name if name.endswith(".png") else name + ".png"))

    with tqdm(paths, unit="image") as bar:
        return asdict(score_first_stage(model, loaded(), on_batch=write))


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
    args, overrides = read_arguments(argv)
    paths = list_images(args)
    model, run, step = load_first_stage(args.resume, args.base, args.device, overrides)
    folder = Path(args.folder).resolve()
    root = Path(args.outdir or run.folder / "reconstructions" / folder.name) / str(step)
    check_place(root)
    scores = reconstruct(args, model, paths, root)
    made = {"checkpoint": str(run.checkpoint), "global_step": step, "folder": str(folder)}
    report = {**scores, **made, "size": args.size}
    text = json.dumps(report, indent=2) + "\n"
    with atomic_path(root / "metrics.json", advice=ADVICE) as partial:
        partial.write_text(text)
    print(summary(scores))
    print(f"{scores['images']} reconstructions and metrics.json are in {root}")


if __name__ == "__main__":
    main()

"""Encode and decode the images of a folder with a first stage, a run's own or a transformer's.

    python scripts/reconstruct.py -r logs/<run> FOLDER
    python scripts/reconstruct.py -r logs/<run of multi_scale_vqgan> FOLDER --after_scales

Reconstructions, as PNGs under the images' names, `metrics.json`, and some of them beside their
originals, `comparison.jpg`, go to `<run>/reconstructions/<folder's name>/<global step>/`, or to
`<global step>_<width>x<height>/` if that has images of another size. A first stage of segmentations
reads and writes PNGs of label numbers, and one of depth reads what scripts/extract_depth.py writes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from taming.atomic_files import atomic_path, check_place
from taming.checkpoint import model_hashes
from taming.command_line import flag, from_flags, parse, parse_size
from taming.data.files.find import find_images
from taming.errors import (
    UserError,
    absence,
    command,
    end_with_damaged,
    interruptible,
    sentence,
)
from taming.evaluation.tasks.first_stage import shown
from taming.evaluation.tasks.reconstruction import score_first_stage
from taming.evaluation.tasks.scale_pictures import require_scales, rows_of_scales
from taming.limits import check_picture, readable_time
from taming.models.first_stage import FirstStage
from taming.pictures import HALF_RANGE, Cell, grid
from taming.sampling.arguments import RunArguments, make_parser, require_positive
from taming.sampling.conditions import cut_to_tokens, read_input
from taming.sampling.folder import ADVICE, OTHER, record_of, save_png
from taming.sampling.load import load_first_stage
from taming.user_files import read_text
from taming.words import counted

Named = tuple[str, Tensor]
FAR_BEYOND = 4  # times the pixels of training
COMPARED, SIDE = 8, 256  # images in the comparison, and their longer side in pixels


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
    after_scales: bool = flag(
        False, "of a first stage of several scales: also after_scales.jpg, the image after each"
    )

    def __post_init__(self) -> None:
        require_positive(num_images=self.num_images, batch_size=self.batch_size)
        if self.size is not None:
            check_picture(*self.size)


def read_arguments(argv: Sequence[str] | None) -> tuple[RunArguments, Arguments, Path]:
    parser = make_parser("Reconstruct the images of a folder.", Arguments)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)  # of all scripts
    parser.add_argument("folder", type=Path, help="of images, at any depth")
    args, overrides = parse(parser, argv)
    run = from_flags(RunArguments, args, overrides=tuple(overrides))
    return run, from_flags(Arguments, args), args.folder


def list_images(folder: Path, num_images: int | None) -> list[str]:
    if not folder.is_dir():
        raise UserError(absence("folder", folder))
    paths = list(islice(find_images(folder), num_images))
    if not paths:
        raise UserError(f"there are no images in {folder}")
    return paths


class Images:
    """The images of a folder; `left_out` has a sentence for each that the model cannot read.

    Those are counted on the `bar`.
    """

    def __init__(
        self, model: FirstStage, folder: Path, size: tuple[int, int] | None, bar: tqdm[NoReturn]
    ) -> None:
        self.model, self.folder, self.size, self.bar = model, folder, size, bar
        self.left_out: list[str] = []

    def read(self, paths: Sequence[str]) -> Iterator[Named]:
        """Paths below the folder, and images [1, C, H, W] in whole tokens; raises `UserError` if
        there is none of these.
        """
        for path in paths:
            try:
                x = read_input(self.model, path, self.size)
                x = cut_to_tokens(x, self.model.downsampling_factor)
            except UserError as error:
                named = sentence(error)
                self.left_out.append(named if path in named else f"{path}: {named}")
                self.bar.update()
                continue
            yield str(Path(path).relative_to(self.folder)), x
        if len(self.left_out) == len(paths):
            raise UserError(self.left_out[0])


def batches(images: Iterable[Named], size: int) -> Iterator[tuple[list[str], Tensor]]:
    """Names and [B, C, H, W] of consecutive images of equal size."""
    for _, group in groupby(images, key=lambda named: named[1].shape):
        while batch := list(islice(group, size)):
            yield [name for name, _ in batch], torch.cat([x for _, x in batch])


def written_name(name: str, folder: Path) -> str:
    """The PNG of an image's reconstruction, which is that of no other image of the folder."""
    written = name
    while not written.endswith(".png") or (written != name and (folder / written).is_file()):
        written += ".png"
    return written


def say_if_large(model: FirstStage, x: Tensor) -> bool:
    """Of images [B, C, H, W] far larger than those of training, say so, and how long one takes."""
    height, width = x.shape[2:]
    channels, (rows, columns) = x.shape[1], model.latent_shape()[1:]
    factor = model.downsampling_factor
    times = height * width / (rows * columns * factor**2)
    if times < FAR_BEYOND:
        return False
    with tqdm.external_write_mode():  # bars make room
        large = f"{width} x {height} pixels are {times:,.0f} times those of training"
        print(large, end="", flush=True)
        trained = torch.zeros(1, channels, rows * factor, columns * factor)
        seconds = []
        for _ in range(2):  # the first one warms up
            start = time.monotonic()
            score_first_stage(model, [trained])
            seconds.append(time.monotonic() - start)
        readable = readable_time(min(seconds) * times)
        print(f": about {readable} for each such image; --size reduces them", flush=True)
    return True


def reconstruct(
    model: FirstStage,
    images: Iterable[Named],
    batch_size: int,
    root: Path,
    bar: tqdm[NoReturn],
    *,
    made: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the reconstructions of all images, and some beside their originals; their scores.

    `made` is what decides them, as `folder_for` has it. The bar counts images that are finished.
    """
    said = False
    names: list[str] = []
    compared: list[list[Cell | tuple[str, Cell]]] = []

    def loaded() -> Iterator[Tensor]:
        nonlocal said
        for batch, x in batches(images, batch_size):
            said = said or say_if_large(model, x)
            names[:] = batch
            yield x

    def write(images: Tensor, reconstructions: Tensor) -> None:
        for name, *pair in zip(names, images, reconstructions, strict=True):
            if len(compared) < COMPARED:
                original, copy = (shown(model, one[None]) for one in pair)
                compared.append([(name, original), ("", copy)])
        if model.reads_labels:  # label numbers are the PNG's bytes
            reconstructions = reconstructions.argmax(1, keepdim=True) / HALF_RANGE - 1
        for name, image in zip(names, reconstructions, strict=True):
            save_png(image, root / written_name(name, Path(made["folder"])), made)
            bar.update()

    scores = score_first_stage(model, loaded(), on_batch=write)
    picture = grid(compared, ["original", "reconstruction"], side=SIDE)
    with atomic_path(root / "comparison.jpg", advice=ADVICE) as partial:
        picture.save(partial, format="JPEG", quality=95)
    return scores


def first_of(images: Iterable[Named], kept: list[Named]) -> Iterator[Named]:
    """The images; the first of them, as many as are shown, are also `kept`."""
    for named in images:
        if len(kept) < COMPARED:
            kept.append(named)
        yield named


def folder_for(place: Path, made: Mapping[str, Any]) -> Path:
    """Where the reconstructions go: a folder that holds none of other images, sizes or weights.

    Raises:
        UserError: if there is none without another --outdir.
    """
    height, width = made["size"] or (None, None)
    step = str(made["global_step"])
    for name in (step, f"{step}_{width}x{height}" if width else f"{step}_full"):
        before = made_before(place / name)
        other = [key for key, value in made.items() if before.get(key, value) != value]
        if other != ["size"]:
            break
    if other:
        key = other[0]
        what = OTHER.get(key) or f"another {key.replace('_', ' ')}, {before[key]}"
        raise UserError(
            f"{place / name} has reconstructions of {what}; choose another --outdir, or remove them"
        )
    return place / name


def made_before(root: Path) -> dict[str, Any]:
    """What the reconstructions in a folder were made of: all of them, or the first ones."""
    try:
        content = json.loads(read_text(root / "metrics.json"))
    except (OSError, ValueError):
        first = next(root.rglob("*.png"), None)
        return {} if first is None else record_of(first)
    return content if isinstance(content, dict) else {}


def summary(scores: Mapping[str, Any]) -> str:
    if "pixel_accuracy" in scores:
        quality = f"{scores['pixel_accuracy']:.1%} of the pixels have their label"
    else:
        quality = f"L1 {scores['l1']:.4f} (images in [-1, 1]), {scores['psnr']:.1f} dB"
    start = "codebook_usage"
    uses = [
        f"codebook usage{level.replace('_', ' ')} {scores[start + level]:.1%}, perplexity "
        f"{scores[f'codebook_perplexity{level}']:.1f}"
        for level in (name.removeprefix(start) for name in scores if name.startswith(start))
    ]
    return ", ".join([quality, *uses])


@command
@interruptible("what is written stays, and the same command begins anew")
def main(argv: Sequence[str] | None = None) -> None:
    arguments, own, folder = read_arguments(argv)
    paths = list_images(folder, own.num_images)
    model, run, step = load_first_stage(
        arguments.resume, arguments.base, arguments.chosen_device(), arguments.overrides
    )
    scaled = require_scales(model) if own.after_scales else None
    place = Path(arguments.outdir or run.folder / "reconstructions" / folder.resolve().name)
    made = {
        "global_step": step,
        "folder": str(folder.resolve()),
        "size": own.size and list(own.size),
        **model_hashes(cast(nn.Module, model), run.model),
    }
    root = folder_for(place, made)
    check_place(root, "choose another --outdir")
    with tqdm(total=len(paths), unit="image") as bar:
        images = Images(model, folder, own.size, bar)
        kept: list[Named] = []
        noted = first_of(images.read(paths), kept)
        scores = reconstruct(model, noted, own.batch_size, root, bar, made=made)
    if scaled is not None:
        rows, labels = rows_of_scales(scaled, kept)
        with atomic_path(root / "after_scales.jpg", advice=ADVICE) as partial:
            grid(rows, labels, side=SIDE).save(partial, format="JPEG", quality=95)
    with atomic_path(root / "metrics.json", advice=ADVICE) as partial:
        about = {**scores, "checkpoint": str(run.checkpoint), **made}
        partial.write_text(json.dumps(about, indent=2) + "\n")
    print(summary(scores))
    made_of = counted(scores["images"], "reconstruction")
    print(f"{made_of}, comparison.jpg and metrics.json are in {root}")
    end_with_damaged(images.left_out)


if __name__ == "__main__":
    main()

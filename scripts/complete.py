"""Complete an image: keep a part of it and draw the rest, in it or around it.

    python scripts/complete.py -r logs/<run> --image photo.png --keep top-half -n 4
    python scripts/complete.py -r logs/<run> --image photo.png --keep mask.png
    python scripts/complete.py -r logs/<run> --image photo.png --pad 64,0,64,0

What is kept are codes of the first stage: the patches that are kept as a whole. Drawings, with the
`input` and what is `kept` of it, go to `<run>/completions/<image's name>/<global step>/`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from taming.devices import choose_device, choose_dtype
from taming.errors import UserError, command
from taming.sampling import sample_images
from taming.sampling.arguments import add_drawing, check_drawing, make_parser, parse
from taming.sampling.completion import HALVES, keep_mask, known_indices
from taming.sampling.conditions import (
    cut_to_tokens,
    read_condition,
    read_picture,
    request_for,
    resized,
)
from taming.sampling.folder import FolderWriter, SampleFolder, save_png
from taming.sampling.load import load_transformer
from taming.sampling.sizes import pixels_per_token, tokens_for


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = make_parser("Complete an image: keep a part of it and draw the rest.")
    parser.add_argument("--image", required=True, help="the image file")
    parser.add_argument(
        "--keep", help=f"{', '.join(HALVES)}, a box x0,y0,x1,y1 in pixels, or a mask, white: kept"
    )
    parser.add_argument(
        "--pad", default="0,0,0,0", help="pixels to draw on the left,top,right,bottom"
    )
    parser.add_argument(
        "--condition", help="a class number, or the file of a map, where the model needs one"
    )
    parser.add_argument("--height", type=int, help="resize and crop to this height in pixels")
    parser.add_argument("--width", type=int, help="resize and crop to this width in pixels")
    parser.add_argument("-n", "--num_samples", type=int, default=4, help="how many (default 4)")
    add_drawing(parser, top_k=100, batch_size=4)
    return parse(parser, argv)


def read_image(args: Namespace, model: Any) -> Tensor:
    """The image [1, C, H, W], resized where a size is given, in whole tokens."""
    factor = pixels_per_token(model)
    picture = read_picture(args.image, model.first_stage_model.channels)
    size = tokens_for(model, args.height, args.width)
    if size is not None:
        picture = resized(picture, (size[0] * factor, size[1] * factor))
    return cut_to_tokens(picture, factor)


def read_pad(text: str, factor: int) -> tuple[int, int, int, int]:
    """What to add on the left, top, right and bottom, in tokens."""
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--pad takes left,top,right,bottom in pixels, not '{text}'")
    pixels = [int(part) for part in parts]
    if any(side % factor for side in pixels):
        raise UserError(f"--pad takes multiples of {factor} pixels for this model, not '{text}'")
    left, top, right, bottom = (side // factor for side in pixels)
    return left, top, right, bottom


def read_known(args: Namespace, model: Any, picture: Tensor) -> Tensor:
    """Indices (h, w) of the image to draw, -1 where they are not known."""
    factor = pixels_per_token(model)
    pad = read_pad(args.pad, factor)
    if args.keep is None and not any(pad):
        raise UserError("say what to keep with --keep, or how far to go beyond it with --pad")
    size = (picture.shape[2], picture.shape[3])
    keep = None if args.keep is None else keep_mask(args.keep, size, factor)
    return known_indices(model, picture, keep, pad)


def show_kept(picture: Tensor, known: Tensor, args: Namespace, factor: int, root: Path) -> None:
    left, top, right, bottom = (side * factor for side in read_pad(args.pad, factor))
    whole = F.pad(picture, (left, right, top, bottom))[0]
    kept = (known >= 0).repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    save_png(picture[0], root / "input.png")
    save_png(torch.where(kept, whole, 0.0), root / "kept.png")


@command
def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = read_arguments(argv)
    settings = check_drawing(args)
    if args.num_samples < 1:
        raise UserError(f"--num_samples must be at least 1, not {args.num_samples}")
    device = choose_device(args.device)
    dtype = choose_dtype(args.precision, device)
    model, run, step = load_transformer(args.resume, args.base, device, overrides, dtype)
    picture, factor = read_image(args, model), pixels_per_token(model)
    known = read_known(args, model, picture)
    shape = (known.shape[0], known.shape[1])
    size = (shape[0] * factor, shape[1] * factor)
    c = None if args.condition is None else read_condition(model, args.condition, size)
    request = request_for(model, c, 0, shape, known)
    root = Path(args.outdir or run.folder / "completions" / Path(args.image).stem) / str(step)
    record = {"seed": args.seed, "global_step": step, "dtype": str(dtype), **asdict(settings)}
    record |= {"image": str(args.image), "keep": args.keep, "pad": args.pad}
    folder = SampleFolder(root, {**record, "condition": args.condition, "size": list(size)})
    finished = folder.finished(None)
    requests = [replace(request, number=n) for n in range(args.num_samples) if n not in finished]
    show_kept(picture, known, args, factor, root)
    samples = sample_images(model, requests, settings, args.batch_size, args.seed, shape=shape)
    with FolderWriter(folder) as writer:
        for sample in tqdm(samples, total=len(requests), unit="image"):
            writer.save(replace(sample, label=None))
    print(f"{args.num_samples} completions are in {root} ({len(requests)} of them new)")


if __name__ == "__main__":
    main()

"""Complete an image: keep a part of it and sample the rest, in it or around it.

    python scripts/complete.py -r logs/<run> --image photo.png --keep top-half -n 4
    python scripts/complete.py -r logs/<run> --image photo.png --keep mask.png
    python scripts/complete.py -r logs/<run> --image photo.png --pad 64,0,64,0

What is kept are codes of the first stage: the patches that are kept as a whole. Completions, with
the `input` and what is `kept` of it, go to `<run>/completions/<image's name>/<global step>/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from taming.checkpoint import model_hashes
from taming.command_line import add_side_flags, flag, parse_size
from taming.errors import UserError, command
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling import request_for_condition, sample_images
from taming.sampling.arguments import (
    SampleArguments,
    make_parser,
    read_arguments,
    require_positive,
)
from taming.sampling.completion import HALVES, keep_mask, known_indices
from taming.sampling.conditions import cut_to_tokens, read_condition, read_picture
from taming.sampling.folder import FolderWriter, SampleFolder, make_record, save_png
from taming.sampling.sizes import Sides, pixels_per_token, tokens_for


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of the run."""

    sampling: SampleArguments
    image: str = flag(MISSING, "the image file")
    keep: str | None = flag(
        None, f"{', '.join(HALVES)}, a box x0,y0,x1,y1 in pixels, or a mask, white: kept"
    )
    pad: str = flag("0,0,0,0", "pixels to add on the left,top,right,bottom")
    condition: str | None = flag(
        None, "a class number, or the file of a map, for models that need one"
    )
    size: Sides | None = flag(
        None, "resize and crop to height,width in pixels (default: as it is)", parse=parse_size
    )
    num_samples: int = flag(4, "how many", "-n")

    def __post_init__(self) -> None:
        require_positive(num_samples=self.num_samples)


def read_image(own: Arguments, model: Net2NetTransformer) -> Tensor:
    """The image [1, C, H, W] in whole tokens, resized if a size is given."""
    factor, shape = pixels_per_token(model), tokens_for(model, own.size)
    size = None if shape is None else (shape[0] * factor, shape[1] * factor)
    return cut_to_tokens(read_picture(own.image, model.first_stage_model.channels, size), factor)


def parse_pad(text: str, factor: int) -> tuple[int, int, int, int]:
    """What to add on the left, top, right and bottom, in tokens.

    Raises:
        UserError: for anything but four multiples of `factor`, which are pixels.
    """
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--pad takes left,top,right,bottom in pixels, not '{text}'")
    pixels = [int(part) for part in parts]
    if any(side % factor for side in pixels):
        raise UserError(f"--pad takes multiples of {factor} pixels for this model, not '{text}'")
    left, top, right, bottom = (side // factor for side in pixels)
    return left, top, right, bottom


def read_known(own: Arguments, model: Net2NetTransformer, picture: Tensor) -> Tensor:
    """Indices (h, w) of the image to sample, -1 at positions to sample."""
    factor = pixels_per_token(model)
    pad = parse_pad(own.pad, factor)
    if own.keep is None and not any(pad):
        raise UserError("say what to keep with --keep, or how far to go beyond it with --pad")
    size = (picture.shape[2], picture.shape[3])
    keep = None if own.keep is None else keep_mask(own.keep, size, factor)
    return known_indices(model, picture, keep, pad)


def write_inputs(picture: Tensor, known: Tensor, pad: str, factor: int, root: Path) -> None:
    """Write the image, and what is kept of it where it is in the samples."""
    left, top, right, bottom = (side * factor for side in parse_pad(pad, factor))
    whole = F.pad(picture, (left, right, top, bottom))[0]  # (C, H, W)
    kept = (known >= 0).repeat_interleave(factor, 0).repeat_interleave(factor, 1)  # (H, W)
    save_png(picture[0], root / "input.png")
    save_png(torch.where(kept, whole, 0.0), root / "kept.png")


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("Complete an image: keep a part of it.", Arguments, top_k=100)
    add_side_flags(parser)
    arguments, own = read_arguments(parser, Arguments, argv)
    sampling = own.sampling
    model, run, step, dtype = arguments.load()
    picture, factor = read_image(own, model), pixels_per_token(model)
    known = read_known(own, model, picture)
    shape = (known.shape[0], known.shape[1])
    size = (shape[0] * factor, shape[1] * factor)
    c = None if own.condition is None else read_condition(model, own.condition, size)
    request = request_for_condition(model, c, 0, shape, known)
    root = Path(arguments.outdir or run.folder / "completions" / Path(own.image).stem) / str(step)
    record = make_record(
        sampling.seed, step, dtype, sampling.settings, model_hashes(model, run.model)
    )
    record |= {"image": own.image, "keep": own.keep, "pad": own.pad}
    folder = SampleFolder(root, {**record, "condition": own.condition, "size": list(size)})
    finished = folder.finished(None)
    requests = [replace(request, number=n) for n in range(own.num_samples) if n not in finished]
    write_inputs(picture, known, own.pad, factor, root)
    samples = sample_images(
        model,
        requests,
        sampling.settings,
        batch_size=sampling.batch_size,
        seed=sampling.seed,
        shape=shape,
    )
    with FolderWriter(folder) as writer:
        for sample in tqdm(samples, total=len(requests), unit="image"):
            writer.save(replace(sample, label=None))
    print(f"{own.num_samples} completions are in {root} ({len(requests)} of them new)")


if __name__ == "__main__":
    main()

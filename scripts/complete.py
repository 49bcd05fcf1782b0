"""Complete an image: keep a part of it and sample the rest, in it or around it.

    python scripts/complete.py -r logs/<run> --image photo.png --keep top-half -n 4
    python scripts/complete.py -r logs/<run> --image photo.png --keep mask.png
    python scripts/complete.py -r logs/<run> --image photo.png --pad 64,0,64,0

A photograph larger than the images of training is reduced to their size first, unless --full_size
or a size is given. What is kept are codes of the first stage: the patches that are kept as a whole,
by boxes and masks in the photograph's own pixels, whatever size is given. Completions, with the
`input` and what is `kept` of it, go to `<run>/completions/<image's name>/<global step>/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.checkpoint import model_hashes
from taming.command_line import flag, parse_size
from taming.data.annotated_objects_dataset import BUILDERS
from taming.errors import UserError, command, interruptible
from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import Placed, Sizes, to_uint8
from taming.sampling import request_for_inputs
from taming.sampling.arguments import (
    DataArguments,
    LoadedRun,
    RunArguments,
    SampleArguments,
    make_parser,
    read_arguments,
    require_positive,
)
from taming.sampling.bars import TokenBar
from taming.sampling.completion import HALVES, Photo, keep_mask, known_indices, read_photo
from taming.sampling.conditions import read_condition
from taming.sampling.engine import check_settings
from taming.sampling.estimate import announce_size, announce_time
from taming.sampling.filling import filling
from taming.sampling.folder import (
    ADVICE,
    SampleFolder,
    file_hashes,
    make_record,
    save_png,
)
from taming.sampling.inputs import SampleInputs
from taming.sampling.scenes import condition_hash, layout_of, number_of_layout
from taming.sampling.sizes import (
    Sides,
    add_side_flags,
    pixels_per_token,
    tokens_for,
    trained_shape,
    trained_size,
)
from taming.words import there_are


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of the run."""

    sampling: SampleArguments
    image: str = flag(MISSING, "the image file")
    keep: str | None = flag(
        None,
        f"{', '.join(HALVES)}, a box x0,y0,x1,y1 or a mask, kept: white and opaque, in the "
        "image's own pixels",
    )
    pad: str = flag("0,0,0,0", "left,top,right,bottom pixels to add, once it is reduced")
    condition: str | None = flag(
        None, "a class number, the file of a map or of a layout, for models that need one"
    )
    size: Sides | None = flag(
        None,
        "resize and crop to height,width in pixels (default: at most as trained)",
        parse=parse_size,
    )
    full_size: bool = flag(False, "complete a large image at its own size, window by window")
    num_samples: int = flag(4, "how many", "-n")

    def __post_init__(self) -> None:
        require_positive(num_samples=self.num_samples)


def read_image(own: Arguments, model: Net2NetTransformer) -> Photo:
    """The image, resized if a size is given, or reduced to the size of training if it is larger."""
    factor, shape = pixels_per_token(model), tokens_for(model, own.size)
    size = None if shape is None else (shape[0] * factor, shape[1] * factor)
    trained = trained_shape(model)
    return read_photo(model.first_stage_model, own.image, trained, size, own.full_size)


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


def read_kept(own: Arguments, factor: int, photo: Photo) -> Tensor:
    """Which tokens of the image, without those that are added around it, are kept: bool (h, w)."""
    if own.keep is not None:
        return keep_mask(own.keep, photo.placed, factor)
    if not any(parse_pad(own.pad, factor)):
        raise UserError("say what to keep with --keep, or how far to go beyond it with --pad")
    return torch.ones([side // factor for side in photo.placed.size], dtype=torch.bool)


def hashes_of(picture: Tensor, kept: Tensor) -> dict[str, str]:
    """What tells apart, for a record, what the same words mean of images reduced, cut or resized:
    the picture (1, C, H, W) in [-1, 1], and which of its tokens are kept, bool (h, w)."""
    pixels = to_uint8(picture).contiguous().numpy()
    named = {"picture": pixels, "kept": kept.contiguous().numpy()}
    return {
        name: hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()[:16]
        for name, values in named.items()
    }


def wanted(model: Net2NetTransformer) -> str:
    """What `--condition` is of a model that needs one."""
    if model.n_classes is not None:
        return f"N, a class from 0 to {model.n_classes - 1}"
    layout = "LAYOUT, a YAML or JSON file as `taming scenes` takes it"
    return layout if model.cond_stage_key in BUILDERS else "FILE"


def inputs_of(
    own: Arguments, arguments: RunArguments, loaded: LoadedRun, shape: Sizes, beside: Placed | None
) -> SampleInputs:
    """What an image of `shape` (in tokens) is sampled for; raises `UserError` if it is not given.

    The names and classes of objects in a layout are those of the run's data.
    """
    model, key = loaded.model, loaded.model.cond_stage_key
    if own.condition is None:
        if model.condition_kind in ("none", "coordinates"):
            return SampleInputs(shape)
        raise UserError(f"this model samples for a given '{key}': give --condition {wanted(model)}")
    if key not in BUILDERS:
        height, width = (side * pixels_per_token(model) for side in shape)
        return SampleInputs(shape, c=read_condition(model, own.condition, (height, width), beside))
    scene, builder = layout_of(own.condition, DataArguments().open(loaded.run, arguments), key)
    number = number_of_layout(condition_hash(scene, builder))
    return SampleInputs(shape, scene=scene, builder=builder, number=number)


def advice_of_size(own: Arguments, model: Net2NetTransformer) -> str:
    """What to do about a size that the model's order of sampling does not have."""
    height, width = trained_size(model)
    return "leave --pad out" if any(parse_pad(own.pad, 1)) else f"add --size {height},{width}"


def say_if_changed(placed: Placed) -> None:
    """What became of an image for which no size was given."""
    (height, width), (rows, columns) = placed.before, placed.size
    if placed.resized != placed.before:
        print(f"the image of {width} x {height} pixels is reduced; --full_size keeps its size")
    elif placed.size != placed.before:
        cut = f"{height - rows} rows below, {width - columns} columns on the right"
        print(f"cut off, as they fill no token: {cut}")


def write_inputs(
    model: Net2NetTransformer, photo: Photo, known: Tensor, pad: str, root: Path
) -> None:
    """Write the image, and what is kept of it where it is in the samples."""
    picture, factor = model.as_pictures(photo.picture), pixels_per_token(model)
    left, top, right, bottom = (side * factor for side in parse_pad(pad, factor))
    whole = F.pad(picture, (left, right, top, bottom))[0]  # (C, H, W)
    kept = (known >= 0).repeat_interleave(factor, 0).repeat_interleave(factor, 1)  # (H, W)
    save_png(picture[0], root / "input.png")
    save_png(torch.where(kept, whole, 0.0), root / "kept.png")


@command
@interruptible(ADVICE)
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("Complete an image: keep a part of it.", Arguments, top_k=100)
    add_side_flags(parser)
    arguments, own = read_arguments(parser, Arguments, argv)
    sampling = own.sampling
    model, run, step, dtype = loaded = arguments.load()
    photo, factor = read_image(own, model), pixels_per_token(model)
    if own.size is None:
        say_if_changed(photo.placed)
    kept, pad = read_kept(own, factor, photo), parse_pad(own.pad, factor)
    shape = (kept.shape[0] + pad[1] + pad[3], kept.shape[1] + pad[0] + pad[2])
    advice = advice_of_size(own, model)  # before a folder or a line is begun
    check_settings(model, sampling.settings, shape, advice=advice)
    inputs = inputs_of(own, arguments, loaded, shape, None if any(pad) else photo.placed)
    root = Path(arguments.outdir or run.folder / "completions" / Path(own.image).stem) / str(step)
    record = make_record(
        sampling.seed, step, dtype, sampling.settings, model_hashes(model, run.model)
    )
    record |= {"image": own.image, "keep": own.keep, "pad": own.pad}
    record |= file_hashes(image=own.image, keep=own.keep, condition=own.condition)
    record |= hashes_of(photo.picture, kept)
    size = [side * factor for side in shape]
    folder = SampleFolder(root, {**record, "condition": own.condition, "size": size})
    sampled = shape[0] * shape[1] - int(kept.sum())
    with filling(folder, dtype, sampling.batch_size, own.num_samples) as going:
        count, batch_size = len(going.missing), going.batch_size
        announce_size(model, shape, count, sampled)  # before anything of that size is computed
        known = known_indices(model, photo.picture, kept, pad)
        request = request_for_inputs(model, inputs, known)
        write_inputs(model, photo, known, own.pad, root)
        first = [request] * min(count, batch_size)
        announce_time(model, first, sampling.settings, batch_size, shape, count=count)
        with TokenBar(count, sampled) as bar:
            requests = (replace(request, number=number) for number in going.missing)
            going.sample(
                model, requests, sampling.settings, seed=sampling.seed, shape=shape, bar=bar
            )
    print(f"{there_are(own.num_samples, 'completion')} in {root} ({count} of them new)")


if __name__ == "__main__":
    main()

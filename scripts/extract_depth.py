"""Write the depth of images as RGBA PNGs whose pixels are float32: of ImageNet, or of a folder.

python scripts/extract_depth.py                                  # ImageNet, both splits
python scripts/extract_depth.py --images data/pairs/images --outdir data/pairs/depth
python scripts/extract_depth.py --model midas/ --weights midas_v2.pt   # without the network
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from taming.command_line import Parser, add_flags, flag, from_flags
from taming.data.files.imagenet_archives import TRAIN, VALIDATION, prepare
from taming.data.tools.extraction import (
    NetworkOptions,
    depth_of,
    depth_picture,
    extract,
    image_names,
    load_network,
)
from taming.data.with_depth import DEPTH_ROOT
from taming.devices import device_of_command
from taming.errors import command, end_with_damaged


@dataclass(frozen=True)
class Options:
    images: str | None = flag(None, "folder of images, at any depth (default: ImageNet)")
    outdir: str = flag(DEPTH_ROOT, "folder for the PNGs", "-o", hidden=("--output",))


def folders(options: Options) -> Iterator[tuple[Sequence[str], str, str]]:
    """Names of images, their folder, and the folder for their depth."""
    if options.images is not None:
        yield image_names(options.images), options.images, options.outdir
        return
    for split in (TRAIN, VALIDATION):
        names, outdir = prepare(split, split.name), os.path.join(options.outdir, split.maps_folder)
        yield names, str(split.root / "data"), outdir


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    add_flags(parser, Options)
    add_flags(parser, NetworkOptions, model="intel-isl/MiDaS:v2", entry="MiDaS")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    device = device_of_command(args.device)
    own = from_flags(Options, args)
    all_folders = list(folders(own))
    network = load_network(from_flags(NetworkOptions, args), device, pretrained=True)
    left_out: list[str] = []
    for names, images, outdir in all_folders:
        report = extract(
            names,
            images,
            outdir,
            lambda image: depth_picture(depth_of(network, image, device)),
            upright=own.images is not None,  # ImageNet's are read as they are in the files
        )
        print(f"{outdir}: {report}")
        left_out += report.bad
    end_with_damaged(left_out)


if __name__ == "__main__":
    main()

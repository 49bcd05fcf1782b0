"""Write the depth of images as RGBA PNGs whose pixels are float32: of ImageNet, or of a folder.

python scripts/extract_depth.py                                  # ImageNet, both splits
python scripts/extract_depth.py --images data/pairs/images --output data/pairs/depth
python scripts/extract_depth.py --model midas/ --weights midas_v2.pt   # without the network
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Sequence

from taming.data.files.find import find_images
from taming.data.files.imagenet_archives import TRAIN, VALIDATION, prepare
from taming.data.imagenet import DEPTH_ROOT
from taming.data.tools.extraction import depth_of, depth_picture, extract, load_network
from taming.devices import choose_device
from taming.errors import UserError, command


def jobs(images: str | None, output: str) -> Iterator[tuple[Sequence[str], str, str]]:
    """Names, their folder, and the folder for their maps."""
    if images is not None:
        names = [os.path.relpath(path, images) for path in find_images(images)]
        if not names:
            raise UserError(f"--images {images} has no images")
        yield names, images, output
        return
    for split in (TRAIN, VALIDATION):
        names_of_split = prepare(split, split.name)
        yield names_of_split, str(split.root / "data"), os.path.join(output, split.maps_folder)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", help="folder of images, at any depth; default: ImageNet")
    parser.add_argument("-o", "--output", default=DEPTH_ROOT, help="folder for the PNGs")
    parser.add_argument(
        "--model",
        default="intel-isl/MiDaS:v2",
        help="torch hub name, folder with hubconf.py, .py file, or TorchScript file",
    )
    parser.add_argument("--entry", default="MiDaS", help="function of --model that makes it")
    parser.add_argument("--weights", help="checkpoint to load into it")
    parser.add_argument("--device", default="auto", help="auto (default), cuda, cuda:1, mps, cpu")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    device = choose_device(args.device)
    found = list(jobs(args.images, args.output))
    network = load_network(args.model, args.entry, args.weights, device, pretrained=True)
    for names, folder, output in found:
        report = extract(
            names, folder, output, lambda image: depth_picture(depth_of(network, image, device))
        )
        print(f"{output}: {report}")


if __name__ == "__main__":
    main()

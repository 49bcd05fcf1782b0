"""Write the labels of images as 8-bit PNGs, by DeepLab v2 (COCO-Stuff's 182 labels) by default.

python scripts/extract_segmentation.py data/sflckr_segmentations --images data/sflckr_images
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from PIL import Image

from taming.command_line import Parser, add_flags, from_flags
from taming.data.tools.extraction import (
    NetworkOptions,
    extract,
    image_names,
    labels_of,
    load_network,
)
from taming.devices import device_of_command
from taming.errors import command, end_with_damaged


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("destination", help="folder for the PNGs, named as the images")
    parser.add_argument("--images", required=True, help="folder of images, at any depth")
    model = {"model": "kazuto1011/deeplab-pytorch", "entry": "deeplabv2_resnet101"}
    add_flags(parser, NetworkOptions, **model)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    names = image_names(args.images)
    device = device_of_command(args.device)
    pretrained = {"pretrained": "cocostuff164k", "n_classes": 182}
    network = load_network(from_flags(NetworkOptions, args), device, **pretrained)
    report = extract(
        names,
        args.images,
        args.destination,
        lambda image: Image.fromarray(labels_of(network, image, device)),
    )
    print(f"{args.destination}: {report}")
    end_with_damaged(report.bad)


if __name__ == "__main__":
    main()

"""Write the labels of images as 8-bit PNGs, by DeepLab v2 (COCO-Stuff's 182 labels) by default.

python scripts/extract_segmentation.py data/sflckr_segmentations --images data/sflckr_images
"""

from __future__ import annotations

import argparse
import logging
import os

from PIL import Image

from taming.data.files.find import find_images
from taming.data.tools.extraction import extract, labels_of, load_network
from taming.devices import choose_device
from taming.errors import UserError, command


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("destination", help="folder for the PNGs, named as the images")
    parser.add_argument("--images", required=True, help="folder of images, at any depth")
    parser.add_argument(
        "--model",
        default="kazuto1011/deeplab-pytorch",
        help="torch hub name, folder with hubconf.py, .py file, or TorchScript file",
    )
    parser.add_argument(
        "--entry", default="deeplabv2_resnet101", help="function of --model that makes it"
    )
    parser.add_argument("--weights", help="checkpoint to load into it")
    parser.add_argument("--device", default="auto", help="auto (default), cuda, cuda:1, mps, cpu")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    names = [os.path.relpath(path, args.images) for path in find_images(args.images)]
    if not names:
        raise UserError(f"--images {args.images} has no images")
    device = choose_device(args.device)
    network = load_network(
        args.model, args.entry, args.weights, device, pretrained="cocostuff164k", n_classes=182
    )
    report = extract(
        names,
        args.images,
        args.destination,
        lambda image: Image.fromarray(labels_of(network, image, device)),
    )
    print(f"{args.destination}: {report}")


if __name__ == "__main__":
    main()

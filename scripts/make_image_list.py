"""Write train.txt and test.txt, lists of the images below a folder, for configs/custom_*.yaml."""

from __future__ import annotations

import argparse

from taming.data.files.list_files import write_image_lists
from taming.errors import command


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="folder of images, at any depth")
    parser.add_argument("-o", "--output", default="data/own", help="folder for the two lists")
    parser.add_argument("--test_fraction", type=float, default=0.05, help="share of the test list")
    parser.add_argument("-s", "--seed", type=int, default=0, help="which images are for testing")
    args = parser.parse_args()
    train, test = write_image_lists(args.folder, args.output, args.test_fraction, args.seed)
    print(f"{args.output}/train.txt lists {train} images, {args.output}/test.txt {test}")


if __name__ == "__main__":
    main()

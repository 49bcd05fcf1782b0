"""Write a labeled picture of the first items that training with a config would see."""

from __future__ import annotations

import argparse

from taming.config import load_config
from taming.data.tools.preview import write_preview
from taming.errors import command


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "-b", "--base", nargs="+", required=True, help="config files, as in main.py"
    )
    parser.add_argument("--split", default="train", choices=("train", "validation", "test"))
    parser.add_argument("-n", "--number", type=int, default=8, help="how many items")
    parser.add_argument("-s", "--seed", type=int, default=23, help="as in main.py")
    parser.add_argument("-o", "--output", default="preview.png", help="the picture to write")
    args, overrides = parser.parse_known_args()
    config = load_config(args.base, overrides)
    print(write_preview(config, args.split, max(1, args.number), args.seed, args.output))


if __name__ == "__main__":
    main()

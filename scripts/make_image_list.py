"""Write train.txt and test.txt, lists of the images below folders, for configs/custom_*.yaml."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from taming.command_line import Parser, add_flags, flag, from_flags
from taming.data.files.images import BadImage, image_mode_and_size
from taming.data.files.list_files import write_image_lists
from taming.errors import UserError, command
from taming.words import counted

MOST_NAMED = 20  # of the files that are left out


@dataclass(frozen=True)
class Options:
    outdir: str = flag("data/own", "folder for the two lists", "-o", hidden=("--output",))
    test_fraction: float = flag(0.05, "share of the test list")
    seed: int = flag(0, "which images are for testing", "-s")

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise UserError(
                f"--test_fraction is a share, from 0 to below 1, not {self.test_fraction}"
            )


def damage_of(path: str) -> str:
    """What is wrong with an image's header, or ""."""
    try:
        image_mode_and_size(path)
    except BadImage as error:
        return f"{path} {error}"
    return ""


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of images, at any depth")
    add_flags(parser, Options)
    args = parser.parse_args(argv)
    options = from_flags(Options, args)
    train, test, damaged = write_image_lists(
        args.folders, options.outdir, options.test_fraction, options.seed, damage_of
    )
    lists = [os.path.join(options.outdir, name) for name in ("train.txt", "test.txt")]
    print(f"{lists[0]} lists {counted(train, 'image')}, {lists[1]} {test}")
    for text in damaged[:MOST_NAMED]:
        print(f"left out: {text}", file=sys.stderr)
    if damaged:
        print(f"left out {counted(len(damaged), 'file')} that are no images", file=sys.stderr)


if __name__ == "__main__":
    main()

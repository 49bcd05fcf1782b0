"""Write a labeled picture of the first items that training with a config would see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taming.command_line import Extend, Parser, add_flags, add_trust_flag, flag, from_flags, parse
from taming.config import load_config
from taming.data.from_config import SPLITS
from taming.data.tools.preview import write_preview
from taming.errors import command
from taming.sampling.arguments import require_positive


@dataclass(frozen=True)
class Options:
    num_items: int = flag(8, "how many items", "-n", hidden=("--number",))
    seed: int = flag(23, "as in main.py", "-s")
    output: str = flag("preview.png", "the picture to write", "-o")

    def __post_init__(self) -> None:
        require_positive(num_items=self.num_items)


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "-b", "--base", nargs="+", action=Extend, required=True, help="config files, as in main.py"
    )
    parser.add_argument("--split", default="train", choices=SPLITS, help="default train")
    add_flags(parser, Options)
    add_trust_flag(parser)
    args, overrides = parse(parser, argv)
    options, config = from_flags(Options, args), load_config(args.base, overrides)
    count, seed = options.num_items, options.seed
    print(write_preview(config, args.split, count, seed, output=options.output))


if __name__ == "__main__":
    main()

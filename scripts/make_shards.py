"""Write the data of a config as WebDataset shards, which taming.data.shards.Shards reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import MISSING, dataclass

from taming.command_line import Extend, Parser, add_flags, add_trust_flag, flag, from_flags, parse
from taming.config import load_config
from taming.data.from_config import SPLITS, dataset_of
from taming.data.tools.shard_writer import write_shards
from taming.errors import UserError, command
from taming.words import counted


@dataclass(frozen=True)
class Options:
    outdir: str = flag(MISSING, "folder for the shards", "-o", hidden=("--output",))
    per_shard: int = flag(5000, "samples per shard", "-n")
    skip_bad: bool = flag(False, "leave damaged files out")


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "-b", "--base", nargs="+", action=Extend, required=True, help="config files"
    )
    parser.add_argument("--split", default="train", choices=SPLITS, help="default train")
    add_flags(parser, Options)
    add_trust_flag(parser)
    args, overrides = parse(parser, argv)
    options = from_flags(Options, args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.per_shard < 1:
        raise UserError(f"--per_shard is {options.per_shard}; it must be at least 1")
    dataset = dataset_of(load_config(args.base, overrides), args.split)
    count = write_shards(dataset, options.outdir, options.per_shard, options.skip_bad)
    print(f"{options.outdir}: {counted(count, 'sample')} of {type(dataset).__name__}")


if __name__ == "__main__":
    main()

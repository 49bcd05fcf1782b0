"""Write the data of a config as WebDataset shards, which taming.data.shards.Shards reads."""

from __future__ import annotations

import argparse
import logging

from taming.config import instantiate_from_config, load_config
from taming.data.tools.shard_writer import write_shards
from taming.errors import UserError, command


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-b", "--base", nargs="+", required=True, help="config files")
    parser.add_argument("--split", default="train", choices=("train", "validation", "test"))
    parser.add_argument("-o", "--output", required=True, help="folder for the shards")
    parser.add_argument("-n", "--per_shard", type=int, default=5000, help="samples per shard")
    parser.add_argument("--skip_bad", action="store_true", help="leave damaged files out")
    args, overrides = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sections = load_config(args.base, overrides).get("data", {}).get("params", {})
    if not sections.get(args.split):
        raise UserError(f"the config has no data.params.{args.split}; give another --split")
    if args.per_shard < 1:
        raise UserError(f"--per_shard is {args.per_shard}; it must be at least 1")
    dataset = instantiate_from_config(sections[args.split], key=f"data.params.{args.split}")
    count = write_shards(dataset, args.output, args.per_shard, args.skip_bad)
    print(f"{args.output}: {count} samples of {type(dataset).__name__}")


if __name__ == "__main__":
    main()

"""Join the shards of checkpoints that were trained with --strategy fsdp2.

    python scripts/consolidate.py logs/<run>
    python scripts/consolidate.py logs/<run>/checkpoints/last.ckpt whole.ckpt

Afterwards they are ordinary checkpoints, to sample from or to go on with on any number of devices.
"""

from __future__ import annotations

from collections.abc import Sequence

from taming.checkpoint import consolidate
from taming.command_line import Parser
from taming.errors import command


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description="Join the shards of a run's checkpoints, or of one of them.")
    parser.add_argument("source", metavar="IN", help="the run: its folder or a checkpoint")
    parser.add_argument(
        "target",
        metavar="OUT",
        nargs="?",
        help="the file to write; default: in place, and the shards are removed",
    )
    args = parser.parse_args(argv)
    for path in consolidate(args.source, args.target):
        print(f"{path} is one file now")


if __name__ == "__main__":
    main()

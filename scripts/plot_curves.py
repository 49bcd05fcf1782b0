"""Draw every value that runs have logged, over their steps: logs/<run>/curves.png.

    python scripts/plot_curves.py -r logs/<run> [logs/<another run>]

Training as a line, validation as dots, a panel for each value; of several runs, in one picture.
docs/is-this-normal.md says what such curves usually look like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from taming.checkpoint.runs import name_of, normal_path, run_folder_of
from taming.command_line import Extend, Parser, add_flags, flag, from_flags
from taming.errors import UserError, command
from taming.training.curves import plot_curves


@dataclass(frozen=True)
class Options:
    output: str | None = flag(None, "the picture (default: curves.png in the first run)", "-o")
    level: float | None = flag(None, "a line in the loss's panel, such as the log of the codes")


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "-r", "--resume", nargs="+", action=Extend, required=True, help="folders of runs"
    )
    add_flags(parser, Options)
    args = parser.parse_args(argv)
    options = from_flags(Options, args)
    folders = list(dict.fromkeys(run_folder_of(normal_path(path)) for path in args.resume))
    names = [str(folder) for folder in folders]
    runs = {name_of(name, names): folder for name, folder in zip(names, folders, strict=True)}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no run {folder}")
    output = Path(options.output) if options.output else folders[0] / "curves.png"
    print(plot_curves(runs, output, options.level))


if __name__ == "__main__":
    main()

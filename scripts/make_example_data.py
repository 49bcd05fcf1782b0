"""Write small datasets in every format that configs/ uses: rendered, without a download."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from taming.command_line import Parser, add_flags, flag, from_flags
from taming.data.examples import write_all, write_landscapes
from taming.errors import UserError, command
from taming.shipped import MAIN, is_installed, run_script, shipped
from taming.words import counted

SCENES = ("simple", "landscapes")
MOST = 5000  # seeds of the scenes of a split


@dataclass(frozen=True)
class Options:
    outdir: str = flag("example_data", "folder to write into", "-o", hidden=("--output",))
    train: int = flag(24, "training images per dataset, at least 5; configs have batches up to 16")
    scenes: str = flag(
        "simple",
        "simple: shapes on a plain, in the format of every dataset; landscapes: what the configs "
        "in configs/gallery/ train on",
    )
    validation: int = flag(12, "validation images per dataset, at least 1")

    def __post_init__(self) -> None:
        if self.scenes not in SCENES:
            raise UserError(f"--scenes is {self.scenes}; it is {' or '.join(SCENES)}")
        for name, count, least in (("train", self.train, 5), ("validation", self.validation, 1)):
            if not least <= count <= MOST:
                raise UserError(f"--{name} must be from {least} to {MOST:,}, not {count}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    if options.scenes == "landscapes":
        count = write_landscapes(options.outdir, options.train, options.validation)
        print(f"{options.outdir}: {counted(count, 'file')} for the configs in configs/gallery/")
        return
    count = write_all(options.outdir, options.train, options.validation)
    folder = shlex.quote(options.outdir)
    print(f"{options.outdir}: {counted(count, 'file')}; to train on them, for example:")
    # ImageNet's images are looked for in the cache; torch's weights stay where they are.
    print(f"  cd {folder} && XDG_CACHE_HOME=$PWD/cache TORCH_HOME=~/.cache/torch \\")
    print(f"    {run_main_in(options.outdir)} --base faceshq_vqgan -t True \\")
    print("    --max_steps 1 data.params.batch_size=1 \\")
    print("    model.params.lossconfig.params.perceptual_weight=0")


def run_main_in(folder: str) -> str:
    """The words that train, called in a folder: of a clone its main.py, wherever that is."""
    if is_installed():
        return run_script(MAIN)
    path = shipped("scripts").parent / "main.py"
    with suppress(ValueError):  # on another of Windows' drives, where no relative path leads
        path = Path(os.path.relpath(path, folder))
    return f"python {shlex.quote(path.as_posix())}"


if __name__ == "__main__":
    main()

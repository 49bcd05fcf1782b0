"""Make the pictures of docs/gallery.md: rendered landscapes, models trained on them, samples.

    python scripts/gallery.py --outdir gallery
    python scripts/gallery.py --outdir gallery --only classes completion

Data, runs and samples go to `<outdir>/work/`, pictures to `<outdir>/`, all with
--small below `<outdir>/small/`. What is there is not made again, but for pictures and runs of a
recipe that has changed, and an interrupted training goes on, when the command is repeated. On a
processor two models train side by side, which is faster than one after the other with all threads;
what they say is in `<outdir>/work/*.log`. `make gallery` runs this.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from taming.command_line import Parser, add_flags, flag, from_flags
from taming.config import did_you_mean
from taming.errors import UserError, command
from taming.gallery.pictures import PICTURES, Album
from taming.gallery.workshop import AUTO, Workshop, precision_here
from taming.training.apart import environment_apart

WORK, SMALL = "work", "small"
# Those that share a transformer, beside what all share; what takes longest is first.
GROUPS = (
    ("segmentation", "panorama"),
    ("classes", "drawing", "completion"),
    ("depth",),
    ("boxes",),
    ("photographs",),
)
AT_ONCE = 2


@dataclass(frozen=True)
class Options:
    outdir: Path = flag(Path("gallery"), "where pictures go; the rest goes to work/ in it", "-o")
    only: tuple[str, ...] = flag((), "make these pictures alone", metavar="NAME", nargs="+")
    seed: int = flag(23, "of data order, weights and samples", "-s")
    precision: str = flag(AUTO, "of training: 32, bf16-mixed, or what is fast here")
    small: bool = flag(False, "a few steps on a few images, in OUTDIR/small, to see that all runs")

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in PICTURES:
                hint = did_you_mean(name, PICTURES)
                raise UserError(
                    f"there is no picture {name}{hint}; there are {', '.join(PICTURES)}"
                )


def groups_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """What can be made apart, none of it where a GPU or a single thread is all there is."""
    groups = [tuple(name for name in group if name in names) for group in GROUPS]
    groups = [group for group in groups if group]
    apart = len(groups) > 1 and torch.get_num_threads() >= AT_ONCE
    return groups if apart and not torch.cuda.is_available() else []


def make_apart(options: Options, shop: Workshop, groups: Sequence[tuple[str, ...]]) -> None:
    """Make groups of pictures, some at once, each by a process with a share of the threads.

    UserError if one of them fails; the others are made.
    """
    shop.render()  # which all need, as they do the first stage
    shop.train("vqgan")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        making = pool.map(lambda group: make_group(options, shop.work, group), groups)
        codes = list(tqdm(making, "groups of pictures", len(groups)))
    failed = [group[0] for group, code in zip(groups, codes, strict=True) if code]
    if failed:
        raise UserError(f"{failed[0]} failed; {shop.work / failed[0]}.log tells why")


def make_group(options: Options, work: Path, names: Sequence[str]) -> int:
    """The exit status of this script for some pictures."""
    log = work / f"{names[0]}.log"
    line = [sys.executable, __file__, "--outdir", str(options.outdir), "--only", *names]
    line += ["--seed", str(options.seed), "--precision", options.precision]
    line += ["--small"] if options.small else []
    threads = str(torch.get_num_threads() // AT_ONCE)
    tqdm.write(f"making {', '.join(names)}: see {log}")
    with log.open("a", encoding="utf-8") as file:
        return subprocess.run(
            line,
            env=environment_apart() | {"OMP_NUM_THREADS": threads},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    outdir = options.outdir / SMALL if options.small else options.outdir
    work = outdir.absolute() / WORK
    work.mkdir(parents=True, exist_ok=True)
    shop = Workshop(work, options.seed, options.precision, options.small)
    names = options.only or tuple(PICTURES)
    album = Album(outdir, work, options.seed, precision_here(options.precision))
    groups = groups_of([name for name in names if not album.has(name)])
    if groups:
        make_apart(options, shop, groups)
    for name in names:
        if album.has(name):
            print(f"{name} is in {outdir}")
            continue
        path = album.add(PICTURES[name](shop), name)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()

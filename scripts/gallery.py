"""Make the pictures of docs/gallery.md: rendered landscapes, models trained on them, samples.

    python scripts/gallery.py --outdir gallery
    python scripts/gallery.py --outdir gallery --only classes completion

Data, runs and samples go to `<outdir>/work/`, pictures to `<outdir>/`. What is there is not made
again, and an interrupted training goes on, when the command is repeated. On a processor two models
train side by side, which is faster than one after the other with all threads; what they say is in
`<outdir>/work/*.log`. `make gallery` runs this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from taming.atomic_files import atomic_path
from taming.command_line import Parser, add_flags, flag, from_flags
from taming.config import did_you_mean
from taming.data.examples.photographs import write_photographs
from taming.data.examples.places import PALETTE, PLACES
from taming.devices import device_of_command
from taming.errors import UserError, command
from taming.pictures import Cell, enlarged, grid, to_pillow
from taming.program import run_apart, train_apart
from taming.sampling import SampleSettings, request_for_condition, sample_images
from taming.sampling.animation import Recorder, to_gif
from taming.sampling.conditions import read_condition
from taming.sampling.load import load_transformer
from taming.sampling.sizes import tokens_for, trained_shape
from taming.shipped import find_config, shipped

LANDSCAPES, SCENE = "data/landscapes", (128, 128)
GUIDED = ("--guidance", "3")  # towards maps and layouts, which models then follow closely
SAMPLING = ("--top_k", "200", "--top_p", "0.92", "--temperature", "0.9")
SETTINGS = SampleSettings(temperature=0.9, top_k=200, top_p=0.92)
PAINTED = "painted_map.png"  # in configs/gallery
PLACE = "lake"  # the kind of place whose drawing is filmed
SMALL_STEPS, SMALL_GPT = 2, ("n_layer=1", "n_embd=24")


@dataclass(frozen=True)
class Options:
    outdir: Path = flag(Path("gallery"), "where pictures go; the rest goes to work/ in it", "-o")
    only: tuple[str, ...] = flag((), "make these pictures alone", metavar="NAME", nargs="+")
    seed: int = flag(23, "of data order, weights and samples", "-s")
    precision: str = flag("auto", "of training: 32, bf16-mixed, or what is fast here")
    small: bool = flag(False, "a few steps on a few images, to see that everything runs")

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in PICTURES:
                hint = did_you_mean(name, PICTURES)
                raise UserError(
                    f"there is no picture {name}{hint}; there are {', '.join(PICTURES)}"
                )


@dataclass
class Workshop:
    """What pictures are made of; each thing is made when it is first asked for.

    Attributes:
        work: the folder with data, runs and samples.
    """

    options: Options
    work: Path
    _runs: dict[str, str] = field(default_factory=dict)

    def run(self, words: Sequence[str]) -> None:
        """Run a subcommand of `taming` in the folder `work`."""
        run_apart(words, self.work)

    @cached_property
    def landscapes(self) -> Path:
        """The rendered landscapes."""
        folder, counts = self.work / LANDSCAPES, ("2000", "96")
        if self.options.small:
            counts = ("16", "8")
        if not (folder / "palette.txt").is_file():  # which is written last
            sizes = ("--train", counts[0], "--validation", counts[1])
            self.run(["examples", "--scenes", "landscapes", "--outdir", LANDSCAPES, *sizes])
        return folder

    @cached_property
    def photographs(self) -> Path:
        """Photographs that come with packages."""
        folder = self.work / "data/photographs"
        if not (folder / "list.txt").is_file():
            write_photographs(folder)
        return folder

    @cached_property
    def hardware(self) -> tuple[str, ...]:
        """Flags of training: the GPU, if there is one, and mixed precision where it is fast."""
        gpu = torch.cuda.is_available()
        fast = gpu or torch.cpu._is_avx512_bf16_supported()
        precision = self.options.precision
        if precision == "auto":
            precision = "bf16-mixed" if fast else "32"
        return ("--precision", precision, *(("--gpus", "0,") if gpu else ()))

    def trained(self, name: str, *overrides: str) -> str:
        """The run of the config gallery/`name`, trained to its end; relative to `work`."""
        if name not in self._runs:
            self._runs[name] = self._train(name, overrides)
        return self._runs[name]

    def _train(self, name: str, overrides: tuple[str, ...]) -> str:
        small = ("--max_steps", str(SMALL_STEPS)) if self.options.small else ()
        flags = (*self.hardware, "--enable_progress_bar", "false", *small)
        start = ("--base", f"gallery/{name}", "--seed", str(self.options.seed), *overrides)
        run = train_apart(name, self.work / "logs", start, flags, self.work)
        return f"logs/{run.name}"

    def transformer(self, name: str, condition: str = "") -> str:
        """The run of gallery/`name`_transformer, on cached codes, with the stages that it needs."""
        assert self.landscapes
        stages = [f"model.params.first_stage_config={self.trained('vqgan')}"]
        if condition:
            stages += [f"model.params.cond_stage_config={self.trained(f'{condition}_vqgan')}"]
        if self.options.small:
            network = "model.params.transformer_config.params"
            stages += [f"{network}.{size}" for size in SMALL_GPT] + ["data.params.batch_size=4"]
        config = str(find_config(f"gallery/{name}_transformer"))
        codes = f"data/codes_{name}"
        self.run(["encode", "--base", config, "--out", codes, "--flips", *stages])
        return self.trained(f"{name}_transformer", *stages, f"data.params.codes={codes}")

    def samples(self, subcommand: str, run: str, name: str, flags: Sequence[str]) -> Path:
        """The folder of what a subcommand samples from a run; the same call makes no more."""
        folder = f"samples/{name}"
        seed = ("--seed", str(self.options.seed))
        self.run([subcommand, "-r", run, "--outdir", folder, *seed, *SAMPLING, *flags])
        return self.work / folder

    def count(self, number: int) -> str:
        return "1" if self.options.small else str(number)


# ---------------------------------------------------------------------- pictures


def of_landscapes(shop: Workshop) -> Image.Image:
    """What the models learn from: the first rendered landscape of each place, labels and depth."""
    names = [min((shop.landscapes / "images/train" / place).glob("*.png")) for place in PLACES]
    shown = [
        [cell_of(name) for name in names],
        [cell_of_labels(shop.landscapes, name) for name in names],
        [cell_of_depth(shop.landscapes, name) for name in names],
    ]
    return grid(shown, PLACES, side=128)


def of_reconstructions(shop: Workshop) -> Image.Image:
    """The first landscape of validation of each place, and what its codes decode to."""
    folder = shop.work / "data/reconstructed"
    folder.mkdir(exist_ok=True, parents=True)
    for place in PLACES:
        image = min((shop.landscapes / "images/val" / place).glob("*.png"))
        shutil.copyfile(image, folder / f"{place}.png")
    return of_decoded(shop, shop.trained("vqgan"), folder)


def of_decoded(shop: Workshop, run: str, folder: Path, columns: int = 8) -> Image.Image:
    """The images of a folder in rows of so many, and below each what a first stage makes of it."""
    out = f"samples/{folder.name}"
    shop.run(["reconstruct", "-r", run, str(folder.relative_to(shop.work)), "--outdir", out])
    pairs = [(folder / path.name, path) for path in sorted((shop.work / out).glob("*/*.png"))]
    rows = [
        [cell_of(pair[made]) for pair in pairs[first : first + columns]]
        for first in range(0, len(pairs), columns)
        for made in (0, 1)
    ]
    return grid(rows)


def spread(total: int) -> list[int]:
    """Six places among so many, at steps that are no multiple of 8: every eighth map is of the same
    kind of place."""
    return [(number * total // 6 + number) % total for number in range(6)]


def of_map(shop: Workshop, kind: str) -> Image.Image:
    """Six maps of validation, spread over all, what the model makes of them, and what they are
    maps of."""
    run = shop.transformer(kind, kind)
    folder = shop.samples("sample-data", run, kind, ("--batch_size", "16", *GUIDED))
    parts = ("conditioning", "samples", "originals")
    columns = sorted(path.name for path in folder.glob("*/samples/*.png"))
    shown = [columns[place] for place in spread(len(columns))]
    rows = [[cell_of(next(folder.glob(f"*/{part}/{name}"))) for name in shown] for part in parts]
    return grid(rows, side=160)


def of_boxes(shop: Workshop) -> Image.Image:
    """Layouts of validation, and two samples of each."""
    run = shop.transformer("boxes")
    sizes = ("-R", "128,128", "-n", shop.count(6), "-N", shop.count(2), "--batch_size", "6")
    folder = shop.samples("scenes", run, "boxes", (*sizes, *GUIDED))
    layouts = sorted(folder.glob("*/layouts/*.png"))
    columns = [
        [layout, *sorted(layout.parent.parent.glob(f"samples/{layout.stem}/*.png"))]
        for layout in layouts
    ]
    return grid([[cell_of(path) for path in row] for row in zip(*columns, strict=True)], side=160)


def of_classes(shop: Workshop) -> Image.Image:
    """Samples of each kind of place, a column each."""
    run = shop.transformer("class")
    flags = ("-n", shop.count(4), "--batch_size", "16")
    folder = shop.samples("sample", run, "classes", flags)
    columns = [sorted(folder.glob(f"samples/*/*/{n}/*.png")) for n in range(len(PLACES))]
    rows = zip(*columns, strict=True)
    return grid([[cell_of(path) for path in row] for row in rows], PLACES, side=128)


def of_completion(shop: Workshop) -> Image.Image:
    """The left halves of validation images, and completions."""
    run, rows = shop.transformer("class"), []
    for place in PLACES[: 1 if shop.options.small else 4]:
        image = min((shop.landscapes / "images/val" / place).glob("*.png"))
        given = ["--image", str(image), "--keep", "left-half", "-n", shop.count(4)]
        given += ["--condition", str(PLACES.index(place))]
        folder = shop.samples("complete", run, f"completion/{place}", given)
        completed = sorted(path for path in folder.glob("*/*.png") if path.stem.isdigit())
        kept = next(folder.glob("*/kept.png"))
        rows.append([cell_of(path) for path in (kept, *completed, image)])
    last = len(rows[0]) - 1
    return grid(rows, {0: "given", 1: "completed", last: "original"}, side=128)


def of_panorama(shop: Workshop) -> Image.Image:
    """The painted map, and the landscape that the sliding window draws of it."""
    painted: Image.Image = Image.open(shipped("configs") / "gallery" / PAINTED)  # of labels
    if shop.options.small:
        painted = painted.resize((160, 128), Image.Resampling.NEAREST)
    painted.save(shop.work / PAINTED)
    run = shop.transformer("segmentation", "segmentation")
    picture, _ = drawn(shop, run, str(shop.work / PAINTED), (painted.height, painted.width))
    colors = Image.fromarray(PALETTE[np.asarray(painted)])
    return grid([[colors], [picture]])


def of_drawing(shop: Workshop) -> list[Image.Image]:
    """Frames of a place while it is drawn."""
    run = shop.transformer("class")
    picture, frames = drawn(shop, run, str(PLACES.index(PLACE)), SCENE)
    return [enlarged(frame, 256) for frame in [*frames, picture]]


def of_photographs(shop: Workshop) -> Image.Image:
    """Parts of photographs, and what codes of them decode to."""
    assert shop.landscapes
    shown = shop.photographs / "shown"
    start = f"model.params.ckpt_path={shop.trained('vqgan')}"
    return of_decoded(shop, shop.trained("photographs_vqgan", start), shown)


@torch.no_grad()
def drawn(
    shop: Workshop, run: str, condition: str, size: tuple[int, int]
) -> tuple[Image.Image, list[Image.Image]]:
    """An image of (height, width) pixels of a class or the file of a map, and pictures of how it
    grew."""
    model, *_ = load_transformer(str(shop.work / run), (), device_of_command("auto"), ())
    shape = tokens_for(model, size) or trained_shape(model)
    request = request_for_condition(model, read_condition(model, condition, size), 0, shape)
    recorder = Recorder(model, shape)
    (sample,) = sample_images(
        model, [request], SETTINGS, seed=shop.options.seed, shape=shape, on_step=recorder
    )
    return to_pillow(sample.image), recorder.frames


def cell_of_labels(root: Path, image: Path) -> Cell:
    """The labels of a rendered landscape in their colors."""
    with Image.open(root / "views/segmentation/train" / image.name) as labels:
        return Image.fromarray(PALETTE[np.asarray(labels)])


def cell_of_depth(root: Path, image: Path) -> Cell:
    """The depth of a rendered landscape; what is near is bright."""
    with Image.open(root / "depth/train" / image.parent.name / image.name) as depth:
        near = np.asarray(depth).astype(np.float32)
    return Image.fromarray((255 * near / near.max()).astype(np.uint8)).convert("RGB")


def cell_of(path: Path) -> Cell:
    with Image.open(path) as image:
        return image.convert("RGB")


PICTURES: dict[str, Callable[[Workshop], Image.Image | list[Image.Image]]] = {
    "landscapes": of_landscapes,
    "reconstructions": of_reconstructions,
    "photographs": of_photographs,
    "classes": of_classes,
    "drawing": of_drawing,
    "completion": of_completion,
    "segmentation": lambda shop: of_map(shop, "segmentation"),
    "panorama": of_panorama,
    "depth": lambda shop: of_map(shop, "depth"),
    "boxes": of_boxes,
}


# Those that share a transformer, beside what all share; what takes longest is first.
GROUPS = (
    ("segmentation", "panorama"),
    ("classes", "drawing", "completion"),
    ("depth",),
    ("boxes",),
    ("photographs",),
)
AT_ONCE = 2


def save(made: Image.Image | list[Image.Image], name: str, outdir: Path) -> Path:
    """A picture as `name`.webp, frames as `name`.gif."""
    path = outdir / (f"{name}.gif" if isinstance(made, list) else f"{name}.webp")
    with atomic_path(path) as partial:
        if isinstance(made, list):
            partial.write_bytes(to_gif(made))
        else:
            made.save(partial, format="WEBP", quality=88, method=6)
    return path


def groups_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """What can be made apart, none of it where a GPU or a single thread is all there is."""
    groups = [tuple(name for name in group if name in names) for group in GROUPS]
    groups = [group for group in groups if group]
    apart = len(groups) > 1 and torch.get_num_threads() >= AT_ONCE
    return groups if apart and not torch.cuda.is_available() else []


def make_apart(shop: Workshop, groups: Sequence[tuple[str, ...]]) -> None:
    """Make groups of pictures, some at once, each by a process with a share of the threads.

    UserError if one of them fails; the others are made.
    """
    assert shop.landscapes and shop.trained("vqgan")  # which all need
    with ThreadPoolExecutor(AT_ONCE) as pool:
        codes = list(
            tqdm(pool.map(lambda group: make_group(shop, group), groups), "pictures", len(groups))
        )
    failed = [group[0] for group, code in zip(groups, codes, strict=True) if code]
    if failed:
        raise UserError(f"{failed[0]} failed; {shop.work / failed[0]}.log tells why")


def make_group(shop: Workshop, names: Sequence[str]) -> int:
    """The exit status of this script for some pictures."""
    options, log = shop.options, shop.work / f"{names[0]}.log"
    line = [sys.executable, __file__, "--outdir", str(options.outdir), "--only", *names]
    line += ["--seed", str(options.seed), "--precision", options.precision]
    line += ["--small"] if options.small else []
    threads = str(torch.get_num_threads() // AT_ONCE)
    tqdm.write(f"making {', '.join(names)}: see {log}")
    with log.open("a", encoding="utf-8") as file:
        return subprocess.run(
            line,
            env={**os.environ, "OMP_NUM_THREADS": threads},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    work = options.outdir.absolute() / "work"
    work.mkdir(parents=True, exist_ok=True)
    shop, names = Workshop(options, work), options.only or tuple(PICTURES)
    groups = groups_of([name for name in names if not any(options.outdir.glob(f"{name}.*"))])
    if groups:
        make_apart(shop, groups)
    for name in names:
        if any(options.outdir.glob(f"{name}.*")):
            print(f"{name} is in {options.outdir}")
            continue
        path = save(PICTURES[name](shop), name, options.outdir)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()

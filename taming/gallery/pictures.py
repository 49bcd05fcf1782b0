"""The pictures of docs/gallery.md, by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from taming.atomic_files import atomic_path, write_text
from taming.data.examples.places import PALETTE, PLACES
from taming.devices import device_of_command
from taming.gallery.workshop import Workshop
from taming.pictures import Cell, enlarged, grid, to_pillow
from taming.sampling import SampleSettings, request_for_condition, sample_images
from taming.sampling.animation import Recorder, to_gif
from taming.sampling.conditions import read_condition
from taming.sampling.load import load_transformer
from taming.sampling.sizes import tokens_for, trained_shape
from taming.shipped import shipped
from taming.user_files import read_text, yamls_in

SCENE = (128, 128)
GUIDED = ("--guidance", "3")  # towards maps and layouts, which models then follow closely
SETTINGS = SampleSettings(temperature=0.9, top_k=200, top_p=0.92)
PAINTED = "painted_map.png"  # in configs/gallery
PLACE = "lake"  # the kind of place whose drawing is filmed


def of_landscapes(shop: Workshop) -> Image.Image:
    """What the models learn from: the first rendered landscape of each place, labels and depth."""
    root = shop.render()
    names = [min((root / "images/train" / place).glob("*.png")) for place in PLACES]
    shown = [
        [cell_of(name) for name in names],
        [cell_of_labels(root, name) for name in names],
        [cell_of_depth(root, name) for name in names],
    ]
    return grid(shown, PLACES, side=128)


def of_reconstructions(shop: Workshop) -> Image.Image:
    """The first landscape of validation of each place, and what its codes decode to."""
    folder = shop.work / "data/reconstructed"
    folder.mkdir(exist_ok=True, parents=True)
    for place in PLACES:
        image = min((shop.render() / "images/val" / place).glob("*.png"))
        shutil.copyfile(image, folder / f"{place}.png")
    return of_decoded(shop, shop.train("vqgan"), folder)


def of_decoded(shop: Workshop, run: str, folder: Path, columns: int = 8) -> Image.Image:
    """The images of a folder in rows of so many, and below each what a first stage makes of it."""
    out = f"samples/{folder.name}{shop.later(run)}"
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
    if kind == "segmentation":  # in the colors of all pictures
        views = sorted((shop.render() / "views/segmentation/val").glob("*.png"))
        rows[0] = [colored(views[int(Path(name).stem)]) for name in shown]
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
    for place in PLACES[: 1 if shop.small else 4]:
        image = min((shop.render() / "images/val" / place).glob("*.png"))
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
    if shop.small:
        painted = painted.resize((160, 128), Image.Resampling.NEAREST)
    painted.save(shop.work / PAINTED)
    run = shop.transformer("segmentation", "segmentation")
    picture, _ = drawn(shop, run, str(shop.work / PAINTED), (painted.height, painted.width))
    return grid([[colored(shop.work / PAINTED)], [picture]])


def of_drawing(shop: Workshop) -> list[Image.Image]:
    """Frames of a place while it is drawn."""
    run = shop.transformer("class")
    picture, frames = drawn(shop, run, str(PLACES.index(PLACE)), SCENE)
    return [enlarged(frame, 256) for frame in [*frames, picture]]


def of_photographs(shop: Workshop) -> Image.Image:
    """Parts of photographs, and what codes of them decode to."""
    shop.render()
    shown = shop.photographs / "shown"
    start = f"model.params.ckpt_path={shop.train('vqgan')}"
    return of_decoded(shop, shop.train("photographs_vqgan", start), shown)


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
        model, [request], SETTINGS, seed=shop.seed, shape=shape, on_step=recorder
    )
    return to_pillow(sample.image), recorder.frames


def cell_of_labels(root: Path, image: Path) -> Cell:
    """The labels of a rendered landscape in their colors."""
    return colored(root / "views/segmentation/train" / image.name)


def colored(path: Path) -> Image.Image:
    """The file of a map of labels in their colors."""
    with Image.open(path) as labels:
        return Image.fromarray(PALETTE[np.asarray(labels)])


def cell_of_depth(root: Path, image: Path) -> Cell:
    """The depth of a rendered landscape; what is near is bright."""
    with Image.open(root / "depth/train" / image.parent.name / image.name) as depth:
        near = np.asarray(depth).astype(np.float32)
    return Image.fromarray((255 * near / near.max()).astype(np.uint8)).convert("RGB")


def cell_of(path: Path) -> Cell:
    """An image file, in RGB."""
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


@dataclass(frozen=True)
class Album:
    """The pictures in a folder, and of which recipes they are.

    Attributes:
        outdir: the pictures' folder.
        work: that of a `Workshop`, where their recipes are noted.
        seed: of data order, weights and samples.
        precision: of training, as the Trainer names it.
    """

    outdir: Path
    work: Path
    seed: int
    precision: str

    def has(self, name: str) -> bool:
        """Whether a picture is there, and of the recipes as they are now."""
        note = self._note(name)
        there = any(self.outdir.glob(f"{name}.*")) and note.is_file()
        return there and read_text(note) == self._recipes()

    def add(self, made: Image.Image | list[Image.Image], name: str) -> Path:
        """Save a picture, or frames; returns the file."""
        path = save(made, name, self.outdir)
        write_text(self._note(name), self._recipes())
        return path

    def _note(self, name: str) -> Path:
        return self.work / "pictures" / f"{name}.txt"

    def _recipes(self) -> str:
        """A hash of the configs, of what is painted, of the seed and the precision. All of them
        count for each picture: what is made of an unchanged recipe stays, and to draw it is quick.
        """
        folder = shipped("configs") / "gallery"
        recipes = [yaml.safe_load(read_text(path)) for path in yamls_in(folder)]
        text = json.dumps([recipes, self.seed, self.precision], sort_keys=True, default=str)
        return hashlib.sha256(text.encode() + (folder / PAINTED).read_bytes()).hexdigest()


def save(made: Image.Image | list[Image.Image], name: str, outdir: Path) -> Path:
    """A picture as `name`.webp, frames as `name`.gif."""
    path = outdir / (f"{name}.gif" if isinstance(made, list) else f"{name}.webp")
    with atomic_path(path) as partial:
        if isinstance(made, list):
            partial.write_bytes(to_gif(made))
        else:
            made.save(partial, format="WEBP", quality=88, method=6)
    return path

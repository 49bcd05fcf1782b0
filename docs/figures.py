"""The figures of the pages on concepts, from runs of the digits demo; minutes on a CPU.

    python docs/figures.py -r logs/<run> --guided logs/<run>

The first run is that of `make demo`, with its first stage beside it; the second one of the same
config with `model.params.cond_drop=0.1`. Without `--guided`, the figure of guidance is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from taming.checkpoint import Run, find_run, run_config
from taming.command_line import Parser, add_flags, flag, from_flags
from taming.errors import command
from taming.figures import new_figure, save_figure
from taming.models.codes import CodeHistogram
from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import bar_picture, code_picture, grid
from taming.sampling import SampleSettings, load_transformer, requests_for_labels, sample_images
from taming.sampling.load import data_config, open_dataset
from taming.sampling.windows import Layout
from taming.training.logged_rows import read_values

COLORS = 128  # of the palettes of the PNGs: digits are gray
USUAL = SampleSettings(top_k=64, top_p=0.95)


@dataclass(frozen=True)
class Options:
    run: str = flag(MISSING, "the run of digits_transformer", "-r")
    guided: str | None = flag(None, "one that was trained with cond_drop")
    outdir: str = flag(str(Path(__file__).parent / "concepts"), "where the PNGs go", "-o")


@dataclass(frozen=True)
class Trained:
    """A transformer, and its run."""

    model: Net2NetTransformer
    run: Run

    @classmethod
    def load(cls, path: str) -> Trained:
        model, run, _ = load_transformer(path, device="cpu")
        return cls(model, run)

    def images(self, count: int) -> Tensor:
        """Validation images (B, 3, H, W)."""
        data = open_dataset(data_config(self.run))
        items = [torch.as_tensor(data[number]["image"]) for number in range(count)]
        return torch.stack(items).permute(0, 3, 1, 2)

    def samples(
        self,
        settings: SampleSettings,
        labels: Sequence[int],
        count: int = 1,
        shape: tuple[int, int] | None = None,
    ) -> list[Tensor]:
        """`count` samples of each class, of seed 0."""
        requests = requests_for_labels(self.model, labels, count)
        return [one.image for one in sample_images(self.model, requests, settings, shape=shape)]


# ---------------------------------------------------------------------- the figures


def codebook(trained: Trained) -> dict[str, Image.Image]:
    """Images, codes, and what is decoded; which codes there are and how often each occurs."""
    stage, images = trained.model.first_stage_model, trained.images(200)
    with torch.no_grad():
        codes = stage.encode_to_indices(images)
        decoded = stage.decode_indices(codes[:4])
        every = torch.arange(stage.quantize.n_e)[:, None, None]
        alone = stage.decode_indices(every.expand(-1, 4, 4))
    histogram = CodeHistogram(stage.quantize.n_e)
    histogram.add(codes)
    rows = [[images[n], code_picture(codes[n]), decoded[n]] for n in range(4)]
    pages = grid(rows, ["image", "its codes", "decoded"], side=128)
    each = grid([list(row) for row in alone.split(16)], side=32, gap=4)
    bars = bar_picture(histogram.counts.sort(descending=True).values, (each.width, 100))
    return {"codebook": pages, "codes": each, "usage": bars}


def sliding_window(trained: Trained) -> dict[str, Image.Image]:
    """Windows of three positions on a larger grid, and samples of growing width."""
    layout = Layout(shape=(8, 16), window=(4, 4))
    maps = [window_picture(layout, *at) for at in ((0, 0), (3, 6), (7, 15))]
    wide = [trained.samples(USUAL, [3], shape=(4, width))[0] for width in (4, 8, 16)]
    titles = ["first position", "one within", "the last one"]
    return {"windows": grid([maps], titles, side=256), "wide": grid([list(wide)], side=256)}


def window_picture(layout: Layout, row: int, column: int) -> Image.Image:
    """Gray: sampled already; blue: in the window and seen; red: the position."""
    (height, width), (h, w) = layout.shape, layout.window
    top, left = layout.corner(row, column)
    pixels = torch.full((height, width, 3), 240, dtype=torch.uint8)
    for y in range(height):
        for x in range(width):
            before = (y, x) < (row, column)
            inside = top <= y < top + h and left <= x < left + w
            color = (185, 185, 185) if before else (240, 240, 240)
            if inside:
                color = (90, 140, 215) if before else (205, 222, 245)
            pixels[y, x] = torch.tensor((215, 70, 60) if (y, x) == (row, column) else color)
    return lined(Image.fromarray(pixels.numpy()).resize((width * 16, height * 16), 0))


def lined(picture: Image.Image, step: int = 16) -> Image.Image:
    """White lines between squares."""
    for x in range(0, picture.width, step):
        picture.paste("white", (x, 0, x + 1, picture.height))
    for y in range(0, picture.height, step):
        picture.paste("white", (0, y, picture.width, y + 1))
    return picture


LABELS = (2, 3, 5, 8)


def decoding(trained: Trained) -> dict[str, Image.Image]:
    """The same seeds with other temperatures, k and p."""
    plain = SampleSettings()
    choices = {
        "temperature": {f"{t:g}": replace(plain, temperature=t) for t in (0.0, 0.5, 1.0, 1.5, 3.0)},
        "top-k": {f"{k}": replace(plain, top_k=k) for k in (1, 2, 5, 20, 64)},
        "top-p": {f"{p:g}": replace(plain, top_p=p) for p in (0.1, 0.5, 0.8, 0.95, 1.0)},
    }
    return {name: compared(trained, kinds, name) for name, kinds in choices.items()}


def guidance(trained: Trained) -> dict[str, Image.Image]:
    """The same seeds with other scales."""
    kinds = {f"{s:g}": replace(USUAL, guidance=s) for s in (0.0, 1.0, 2.0, 4.0, 8.0)}
    return {"guidance": compared(trained, kinds, "guidance")}


def compared(trained: Trained, kinds: dict[str, SampleSettings], name: str) -> Image.Image:
    """A column for each setting, a row for a sample of each of four classes."""
    columns = [trained.samples(kind, LABELS) for kind in kinds.values()]
    titles = [f"{name} {value}" if n == 0 else value for n, value in enumerate(kinds)]
    return grid([list(row) for row in zip(*columns, strict=True)], titles, side=96, gap=6)


def adaptive_weight(run: Run, path: Path) -> None:
    """Curves of a first stage: the adaptive weight, and the error of reconstructions."""
    values = read_values(run.folder / "csv")
    start = run_config(run, [], used=["model"]).model.params.lossconfig.params.disc_start
    figure, axes = new_figure(8, 2.6, columns=2)
    for axis, name in zip(axes, ("train/d_weight", "train/rec_loss"), strict=True):
        points = values.get(name, [])
        axis.plot([step for step, _ in points], [value for _, value in points], linewidth=1)
        axis.axvline(start, color="gray", linestyle=":")
        axis.set_title(name)
        axis.set_xlabel("step")
    save_figure(figure, path, dpi=90)


# ---------------------------------------------------------------------- writing


def write(pictures: dict[str, Image.Image], folder: Path) -> None:
    """As PNGs with a palette, which halves their size."""
    for name, picture in pictures.items():
        picture.quantize(COLORS).save(folder / f"{name}.png", optimize=True)


def first_stage_run(run: Run) -> Run | None:
    """The demo's first stage, with what it has logged: the newest beside the transformer's run."""
    stages = sorted(run.folder.parent.glob("*_digits_vqgan/csv"))
    return find_run(stages[-1].parent) if stages else None


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    folder = Path(options.outdir)
    folder.mkdir(parents=True, exist_ok=True)
    trained = Trained.load(options.run)
    draw: Callable[[Trained], dict[str, Any]]
    for draw in (codebook, sliding_window, decoding):
        write(draw(trained), folder)
    if options.guided:
        write(guidance(Trained.load(options.guided)), folder)
    if stage := first_stage_run(trained.run):
        adaptive_weight(stage, folder / "adaptive-weight.png")
    else:
        print("there is no trained run of digits_vqgan beside it: its curves are left out")
    print(f"the figures are in {folder}")


if __name__ == "__main__":
    main()

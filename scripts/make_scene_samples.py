"""Sample scenes: from the boxes of a run's data, or from layouts that you write.

    python scripts/make_scene_samples.py -r logs/<run> --outdir scenes
    python scripts/make_scene_samples.py -r logs/<run> --outdir scenes --layout street.yaml

A layout is a list of objects, `- {class: person, box: [0.1, 0.2, 0.3, 0.7]}`: x0, y0, width and
height as shares of the image. Plots of the layouts go to
`<outdir>/<global step>_<top_k>_<temperature>/layouts/`, samples to `samples/<layout>/`, and, with
data, `originals/` and `reconstructions/`. The same command again samples what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from taming.checkpoint import model_hashes
from taming.command_line import flag, parse_size
from taming.data.seeding import SeededDataset
from taming.errors import UserError, command, end_with_damaged, interruptible
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling import Request, requests_for_scene
from taming.sampling.arguments import (
    DataArguments,
    SampleArguments,
    make_parser,
    read_arguments,
    require_positive,
)
from taming.sampling.bars import ImageBar
from taming.sampling.engine import check_settings
from taming.sampling.estimate import announced
from taming.sampling.filling import filling
from taming.sampling.folder import ADVICE, SampleFolder, make_record, save_png
from taming.sampling.items import undamaged
from taming.sampling.scenes import (
    Scene,
    builder_of,
    condition_hash,
    number_of_layout,
    read_layout,
    read_scene,
    scene_dataset,
    scene_name,
)
from taming.sampling.sizes import whole_tokens
from taming.words import counted

Layout = tuple[Scene, Tensor | None]
"""A scene and, if it is of the data, its image [1, H, W, 3]."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of the run."""

    data: DataArguments
    sampling: SampleArguments
    size: tuple[int, int] = flag(
        (256, 256),
        "height,width in pixels",
        "-R",
        "--resolution",
        parse=parse_size,
    )
    conditional: str = flag("objects_bbox", "or objects_center_points", "-C")
    samples_per_layout: int = flag(4, "of each layout", "-N", hidden=("--n_samples_per_layout",))
    layout: tuple[str, ...] = flag((), "YAML or JSON files (default: the data's)", nargs="+")
    num_layouts: int | None = flag(None, "of the data (default: all)", "-n")

    def __post_init__(self) -> None:
        require_positive(samples_per_layout=self.samples_per_layout, num_layouts=self.num_layouts)


@dataclass
class Layouts:
    """What is sampled: scenes of the data, which are read one by one, or written ones."""

    names: list[str]  # of their folders
    read: Callable[[int], Layout]
    left_out: dict[int, str] = field(default_factory=dict)  # sentences, of damaged images

    def __iter__(self) -> Iterator[tuple[int, Layout]]:
        return undamaged(self.read, range(len(self.names)), self.left_out)


def scenes(own: Arguments, seeded: SeededDataset) -> Layouts:
    """The layouts that are asked for; written ones are read at once."""
    if own.layout:
        dataset = scene_dataset(seeded)
        paths = [Path(name) for name in own.layout]
        for path, other in combinations(paths, 2):
            if path.stem == other.stem:
                raise UserError(
                    f"samples go to folders of the layouts' names, and {path} and {other} have the "
                    "same; rename one, or sample it by itself with another --outdir"
                )
        layouts = [(read_layout(path, dataset, own.conditional), None) for path in paths]
        return Layouts([path.stem for path in paths], layouts.__getitem__)
    count = min(len(seeded), own.num_layouts or len(seeded))
    return Layouts([scene_name(number) for number in range(count)], partial(read_scene, seeded))


def missing(root: Path, names: Sequence[str], each: int) -> int:
    """How many samples of these layouts are not there, whatever made those that are."""
    folders = (SampleFolder(root / name, {}) for name in names)
    return sum(each - len(folder.numbers(None) & set(range(each))) for folder in folders)


@torch.no_grad()
def write_image(model: Net2NetTransformer, image: Tensor | None, name: str, root: Path) -> None:
    """Write the original, if there is one, and its reconstruction."""
    if image is None:
        return
    x = model.get_input("image", {"image": image}).to(model.device)
    quant, indices = model.encode_to_z(x)
    save_png(model.as_pictures(x)[0], root / "originals" / name)
    save_png(model.decode_to_picture(indices, quant.shape)[0], root / "reconstructions" / name)


@command
@interruptible(ADVICE)
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("Sample scenes from boxes.", Arguments, top_k=100)
    arguments, own = read_arguments(parser, Arguments, argv)
    sampling, settings, (height, width) = own.sampling, own.sampling.settings, own.size
    model, run, step, dtype = own.data.load(arguments)
    shape = whole_tokens(model, own.size)
    check_settings(model, settings, shape)  # before anything is written
    seeded = own.data.open(run, arguments)
    name = f"{step}_{settings.top_k_name}_{settings.temperature}"
    root = Path(arguments.outdir or run.folder / "scenes") / name
    record = make_record(sampling.seed, step, dtype, settings, model_hashes(model, run.model))
    record |= {"size": [height, width], "conditional": own.conditional}
    builder, new = builder_of(seeded.dataset, own.conditional), 0
    class_name = scene_dataset(seeded).get_textual_label_for_category_no
    layouts = scenes(own, seeded)
    left = missing(root / "samples", layouts.names, own.samples_per_layout)
    with ImageBar(left) as bar:
        for place, (scene, image) in layouts:
            condition = condition_hash(scene, builder)
            number = number_of_layout(condition) if own.layout else place
            own_record = record | {"condition_hash": condition}
            folder = SampleFolder(root / "samples" / scene.name, own_record)
            with filling(folder, dtype, sampling.batch_size, own.samples_per_layout) as going:
                plot = builder.plot(scene.tokens(builder), class_name, (width, height))
                save_png(plot, root / "layouts" / f"{scene.name}.png")
                write_image(model, image, f"{scene.name}.png", root)
                requests: Iterable[Request] = requests_for_scene(
                    scene, builder, number, going.missing
                )
                size = going.batch_size
                if new == 0:
                    requests = announced(model, requests, settings, size, shape, count=left)
                going.sample(model, requests, settings, seed=sampling.seed, shape=shape, bar=bar)
                new += len(going.missing)
    print(f"layouts and samples are in {root} ({counted(new, 'new sample')})")
    end_with_damaged(list(layouts.left_out.values()))


if __name__ == "__main__":
    main()

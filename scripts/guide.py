"""Make images that a text, an image or a class guides, with any first stage.

    python scripts/guide.py -r logs/<run> --clip ViT-B-32 --prompt "a fox:1.0" --prompt "snow:0.5"
    python scripts/guide.py -r logs/<run> --features lpips --image_prompt photo.png
    python scripts/guide.py -r logs/<run> --classifier small:report/classifier.pt --classes 3

The codes of an image are optimized until the guide, of which each step shows random cut-outs of the
image, finds it near the prompts. They start from random codes, from codes that the run's
transformer samples (--start prior), or from those of an image (--init), of which a part may be kept
(--mask). Images, with all settings in the PNGs' text, their `grid.png` and with --film how they
came about go to `<run>/guided/<prompts>/<global step>/`. The same command again makes what is
missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from taming.atomic_files import atomic_path
from taming.checkpoint import Run, model_hashes
from taming.command_line import flag
from taming.devices import choose_dtype, dtype_name
from taming.errors import UserError, command, interruptible
from taming.guidance import (
    CodeGrids,
    CutSettings,
    Guided,
    GuideSettings,
    GuideStep,
    Objective,
    Start,
    guide,
    image_start,
    random_start,
)
from taming.guidance.arguments import PRIOR, Beginning, Prompts
from taming.guidance.encoders import ImageEncoder
from taming.guidance.memory import check_step_memory
from taming.guidance.start import chance_for, prior_start, trained_grid
from taming.limits import readable_size
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.first_stage import FirstStage
from taming.pictures import grid, to_pillow
from taming.sampling.animation import to_gif, to_mp4
from taming.sampling.arguments import (
    RunArguments,
    make_parser,
    read_arguments,
    require_positive,
)
from taming.sampling.completion import Photo, changed_mask, read_photo
from taming.sampling.folder import ADVICE, FolderWriter, SampleFolder, file_hashes, save_png
from taming.sampling.load import load_first_stage
from taming.sampling.settings import SampleSettings, TokenSettings
from taming.sampling.sizes import whole_codes
from taming.words import counted

MOST_IN_GRID, GRID_SIDE = 64, 256
MP4, GIF = ".mp4", ".gif"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of the run."""

    prompts: Prompts
    beginning: Beginning
    guidance: GuideSettings
    cuts: CutSettings
    sampling: TokenSettings
    num_samples: int = flag(1, "images, of each class", "-n")
    film: bool = flag(False, "write how each image came about, NNNNNN.mp4 (or .gif) beside it")

    def __post_init__(self) -> None:
        require_positive(num_samples=self.num_samples)

    def describe(self) -> dict[str, Any]:
        """What decides an image beside its class and its number, as JSON values."""
        own = asdict(self.prompts) | asdict(self.beginning)
        del own["classes"]
        own["image_prompt_weights"] = self.prompts.image_weights
        lists = {key: list(value) for key, value in own.items() if isinstance(value, tuple)}
        if self.beginning.start == PRIOR:
            own["prior"] = self.sampling.describe()
        return {**own, **lists, **self.guidance.describe(), **self.cuts.describe()}


@dataclass(frozen=True, eq=False)
class Loaded:
    """A first stage, the transformer that samples its codes if that is needed, and their run."""

    stage: FirstStage
    prior: Net2NetTransformer | None
    run: Run
    step: int


def load(arguments: RunArguments, with_prior: bool) -> Loaded:
    if with_prior:
        model, run, step, _ = arguments.load()
        return Loaded(model.first_stage_model, model, run, step)
    options = (arguments.base, arguments.chosen_device(), arguments.overrides)
    stage, run, step = load_first_stage(arguments.resume, *options)
    return Loaded(stage, None, run, step)


@dataclass(frozen=True, eq=False)
class Starts:
    """What each image starts from."""

    own: Beginning
    grids: CodeGrids
    prior: Net2NetTransformer | None
    seed: int
    settings: SampleSettings
    shape: tuple[int, int]
    photo: Photo | None = None
    free: Tensor | None = None  # codes that may change, bool (h, w)
    changed: Tensor | None = None  # pixels that may change, bool (H, W)

    @classmethod
    def of(cls, arguments: Arguments, loaded: Loaded, grids: CodeGrids) -> Starts:
        """Reads the image and the mask."""
        own, seed = arguments.beginning, arguments.guidance.seed
        shape, factor = trained_grid(grids), grids.stage.downsampling_factor
        shape = shape if own.size is None else whole_codes(own.size, factor, shape)
        plain = cls(
            own=own,
            grids=grids,
            prior=loaded.prior,
            seed=seed,
            settings=SampleSettings(**vars(arguments.sampling)),
            shape=shape,
        )
        if own.init is None:
            return plain
        photo = read_photo(loaded.stage, own.init, shape, own.size, own.full_size)
        height, width = photo.placed.size
        plain = replace(plain, photo=photo, shape=(height // factor, width // factor))
        if own.mask is None:
            return plain
        free, changed = changed_mask(own.mask, photo.placed, factor)
        return replace(plain, free=free, changed=changed)

    def __call__(self, number: int) -> Start:
        if self.photo is not None:
            return image_start(self.grids, self.photo.picture, self.free)
        if self.prior is not None:
            return prior_start(
                self.prior,
                self.seed,
                number,
                label=self.own.condition,
                shape=self.shape,
                settings=self.settings,
            )
        chance = chance_for(self.seed, number, self.grids.device)
        return random_start(self.grids, self.shape, chance)

    def finished(self, image: Tensor) -> Tensor:
        """An image [C, H, W], with the pixels that are kept if that was asked for."""
        if not self.own.paste or self.photo is None or self.changed is None:
            return image
        return torch.where(self.changed, image, self.photo.picture[0])


class Film:
    """The frames of one image."""

    def __init__(self) -> None:
        self.frames: list[Image.Image] = []

    def __call__(self, step: GuideStep) -> None:
        if step.is_frame:
            self.frames.append(to_pillow(step.image.float()))

    @staticmethod
    def is_beside(path: Path) -> bool:
        """Whether there is a film of the image at `path`."""
        return any(path.with_suffix(ending).is_file() for ending in (MP4, GIF))

    def write(self, last: Tensor, path: Path) -> None:
        """Write an MP4, or a GIF if there is no ffmpeg."""
        frames = [*self.frames, to_pillow(last)]
        content, ending = to_mp4(frames), MP4
        if content is None:
            content, ending = to_gif(frames), GIF
        with atomic_path(path.with_suffix(ending), advice=ADVICE) as partial:
            partial.write_bytes(content)


def announce(grids: CodeGrids, shape: tuple[int, int]) -> None:
    """Of a size other than the training's, say what a step takes; UserError if it is too much."""
    needed = check_step_memory(grids, shape)
    if shape != trained_grid(grids):
        height, width = grids.size_of(shape)
        print(f"{width} x {height} pixels: a step takes {readable_size(needed)} of memory")


def write_grid(folder: SampleFolder, places: Sequence[tuple[int | None, int]]) -> None:
    """`grid.png`, of the images that there are."""
    pictures = [Image.open(folder.path(*place)) for place in places[:MOST_IN_GRID]]
    columns = max(1, round(len(pictures) ** 0.5))
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    with atomic_path(folder.root / "grid.png", advice=ADVICE) as partial:
        grid(rows, side=GRID_SIDE).save(partial, "PNG")


def make_record(
    arguments: RunArguments, own: Arguments, loaded: Loaded, encoder: ImageEncoder
) -> dict[str, Any]:
    model: nn.Module = loaded.prior or loaded.stage  # type: ignore[assignment]
    dtype = choose_dtype(arguments.precision, arguments.chosen_device())
    facts = {"global_step": loaded.step, "dtype": dtype_name(dtype)}
    files = own.prompts.files(encoder) | {"init": own.beginning.init, "mask": own.beginning.mask}
    facts |= own.describe() | file_hashes(**files)
    return {**facts, **model_hashes(model, loaded.run.model)}


OnStep = Callable[[GuideStep], None]
Make = Callable[[int | None, int, OnStep], Guided]


def fill(folder: SampleFolder, own: Arguments, starts: Starts, make: Make) -> int:
    """Make the images that a folder lacks, or whose films it lacks; how many."""
    labels = own.prompts.classes or (None,)
    there = {label: folder.finished(label) for label in labels}
    numbers = range(own.num_samples)

    def is_missing(label: int | None, number: int) -> bool:
        unfilmed = own.film and not Film.is_beside(folder.path(label, number))
        return number not in there[label] or unfilmed

    missing = [(label, n) for label in labels for n in numbers if is_missing(label, n)]
    steps = own.guidance.steps * len(missing)
    bar = tqdm(total=steps, unit="step", disable=not missing)
    with FolderWriter(folder), bar:
        for label, number in missing:
            film = Film()

            def on_step(step: GuideStep, film: Film = film) -> None:
                bar.set_postfix_str(f"loss {step.loss:.4f}", refresh=False)
                bar.update()
                if own.film:
                    film(step)

            guided = make(label, number, on_step)
            image = starts.finished(guided.image)
            record = {**folder.record, "class": label, "number": number, "loss": guided.losses[-1]}
            if own.film:
                film.write(image, folder.path(label, number))
            save_png(image, folder.path(label, number), record)
        write_grid(folder, [(label, n) for label in labels for n in numbers])
    return len(missing)


@command
@interruptible(ADVICE)
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("Make images that a text, an image or a class guides.", Arguments)
    arguments, own = read_arguments(parser, Arguments, argv)
    device = arguments.chosen_device()
    dtype = choose_dtype(arguments.precision, device)
    loaded = load(arguments, own.beginning.start == PRIOR)
    grids = CodeGrids.of(loaded.stage)
    starts = Starts.of(own, loaded, grids)
    announce(grids, starts.shape)
    encoder = own.prompts.load(device)
    objectives = {
        label: Objective(encoder, targets, own.cuts, dtype)
        for label, targets in own.prompts.targets(encoder).items()
    }
    if own.beginning.init is None and not all(each.has_goal for each in objectives.values()):
        raise UserError(
            "no prompt has a weight above 0, so that there is nothing to draw; give one, or --init "
            "with an image to change"
        )
    default = loaded.run.folder / "guided" / own.prompts.name
    record = make_record(arguments, own, loaded, encoder)
    folder = SampleFolder(Path(arguments.outdir or default) / str(loaded.step), record)

    def make(label: int | None, number: int, on_step: OnStep) -> Guided:
        stream = (label or 0) * 2**32 + number
        options: dict[str, Any] = {"start": starts(stream), "number": stream, "on_step": on_step}
        return guide(loaded.stage, objectives[label], own.guidance, **options)

    new = fill(folder, own, starts, make)
    count = own.num_samples * len(objectives)
    print(f"{counted(count, 'image')} and grid.png in {folder.root} ({new} of them new)")


if __name__ == "__main__":
    main()

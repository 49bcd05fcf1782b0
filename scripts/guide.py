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

import re
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
from taming.command_line import flag, parse_numbers, parse_size
from taming.devices import choose_dtype, device_of_command, dtype_name
from taming.errors import UserError, command, interruptible
from taming.guidance import (
    CodeGrids,
    CutSettings,
    Guided,
    GuideSettings,
    GuideStep,
    ImageEncoder,
    Objective,
    Start,
    Target,
    class_target,
    guide,
    image_start,
    image_targets,
    load_classifier_guide,
    load_clip,
    load_features,
    random_start,
    text_targets,
)
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
from taming.sampling.completion import HALVES, Photo, changed_mask, read_photo
from taming.sampling.folder import ADVICE, FolderWriter, SampleFolder, save_png
from taming.sampling.load import load_first_stage
from taming.sampling.settings import SampleSettings
from taming.words import counted

RANDOM, PRIOR = "random", "prior"
FRAMES = 40
MOST_IN_GRID, GRID_SIDE = 64, 256


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What the images are of, and who judges that."""

    prompt: tuple[str, ...] = flag(
        (), "TEXT or TEXT:WEIGHT, several times; below 0: away from it", repeated=True
    )
    image_prompt: tuple[str, ...] = flag((), "FILE or FILE:WEIGHT, likewise", repeated=True)
    classes: tuple[int, ...] | None = flag(
        None, "as 3,7: images of each of these, for --classifier", parse=parse_numbers
    )
    clip: str | None = flag(
        None, "guide: a model of open_clip's as ViT-B-32, ViT-B-32:TAG, or its folder"
    )
    clip_weights: str | None = flag(
        None, "its file (default: where open_clip and the hub keep them)", metavar="FILE"
    )
    features: str | None = flag(
        None, "guide, for image prompts: lpips, lpips-alex, or a torchvision model as vgg16[:FILE]"
    )
    classifier: str | None = flag(
        None, "guide, for classes: small:FILE of scripts/report.py, or resnet50[:FILE]"
    )

    def __post_init__(self) -> None:
        guides = [n for n in ("clip", "features", "classifier") if vars(self)[n] is not None]
        if len(guides) > 1:
            raise UserError(f"--{guides[0]} and --{guides[1]} are two guides; give one of them")
        if not guides:
            raise UserError(
                "say who guides: --clip for texts, --features for image prompts, or --classifier "
                "for classes"
            )
        if not (self.prompt or self.image_prompt or self.classes):
            raise UserError("say what to draw: --prompt, --image_prompt or --classes")
        if self.clip_weights is not None and self.clip is None:
            raise UserError("--clip_weights are those of --clip, which is missing; add it")

    def load(self, device: torch.device) -> ImageEncoder:
        """The guide."""
        if self.clip is not None:
            return load_clip(self.clip, self.clip_weights, device)
        if self.features is not None:
            return load_features(self.features, device)
        assert self.classifier is not None
        return load_classifier_guide(self.classifier, device)

    def targets(self, encoder: ImageEncoder) -> dict[int | None, list[Target]]:
        """What to draw, by the class; only None without `--classes`."""
        shared = text_targets(encoder, self.prompt) + image_targets(encoder, self.image_prompt)
        if self.classes is None:
            return {None: shared}
        return {label: [class_target(encoder, label), *shared] for label in self.classes}

    @property
    def name(self) -> str:
        """For a folder."""
        words = [*self.prompt, *(Path(p).stem for p in self.image_prompt)]
        words = words or [f"class {label}" for label in self.classes or ()]
        return re.sub(r"[^\w.-]+", "_", " ".join(words)).strip("_.")[:60] or "prompts"


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What the images start from, and how large they are."""

    start: str = flag(RANDOM, f"{RANDOM} codes, or {PRIOR}: sampled by the run's transformer")
    init: str | None = flag(None, "start from this image", metavar="IMAGE")
    mask: str | None = flag(
        None,
        f"change a part of --init only: {', '.join(HALVES)}, a box x0,y0,x1,y1 in its pixels, or a "
        "file of its size that is white there",
    )
    paste: bool = flag(False, "with --mask, put the image's own pixels back around the part")
    size: tuple[int, int] | None = flag(
        None, "height,width in pixels (default: of training, or of --init)", parse=parse_size
    )
    full_size: bool = flag(False, "keep an --init larger than the images of training as it is")
    condition: int | None = flag(None, f"with --start {PRIOR}, the class that is sampled")

    def __post_init__(self) -> None:
        if self.start not in (RANDOM, PRIOR):
            raise UserError(f"--start takes {RANDOM} or {PRIOR}, not '{self.start}'")
        if self.start == PRIOR and self.init is not None:
            raise UserError(f"--init and --start {PRIOR} are two starts; give one of them")
        for name in ("mask", "paste", "full_size"):
            if vars(self)[name] and self.init is None:
                raise UserError(f"--{name} is about an image to start from; give --init")
        if self.paste and self.mask is None:
            raise UserError("--paste is about what --mask leaves; give it as well")
        if self.condition is not None and self.start != PRIOR:
            raise UserError(f"--condition is what --start {PRIOR} samples; add that")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of the run."""

    prompts: Prompts
    beginning: Beginning
    guidance: GuideSettings
    cuts: CutSettings
    sampling: SampleSettings
    num_samples: int = flag(1, "images, of each class", "-n")
    film: bool = flag(False, "write how each image came about, NNNNNN.mp4 (or .gif) beside it")

    def __post_init__(self) -> None:
        require_positive(num_samples=self.num_samples)

    def describe(self) -> dict[str, Any]:
        """What decides an image, as JSON values."""
        own = asdict(self.prompts) | asdict(self.beginning)
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
    options = (arguments.base, arguments.device, arguments.overrides)
    stage, run, step = load_first_stage(arguments.resume, *options)
    return Loaded(stage, None, run, step)


def grid_shape(grids: CodeGrids, size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) in codes of a size in pixels, by default that of training.

    Raises UserError for sides that are no whole codes.
    """
    if size is None:
        return trained_grid(grids)
    factor = grids.stage.downsampling_factor
    for name, side in zip(("height", "width"), size, strict=True):
        if side % factor:
            raise UserError(
                f"the {name} must be a multiple of {factor} pixels for this model, not {side}"
            )
    return size[0] // factor, size[1] // factor


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
        shape = grid_shape(grids, own.size)
        plain = cls(
            own=own,
            grids=grids,
            prior=loaded.prior,
            seed=seed,
            settings=arguments.sampling,
            shape=shape,
        )
        if own.init is None:
            return plain
        photo = read_photo(loaded.stage, own.init, shape, own.size, own.full_size)
        factor, sides = grids.stage.downsampling_factor, photo.picture.shape[2:]
        plain = replace(plain, photo=photo, shape=(sides[0] // factor, sides[1] // factor))
        if own.mask is None:
            return plain
        size = (sides[0], sides[1])
        free, changed = changed_mask(own.mask, size, factor, photo.original)
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
    """The frames of one image, about `FRAMES`."""

    def __init__(self) -> None:
        self.frames: list[Image.Image] = []

    def __call__(self, step: GuideStep) -> None:
        if step.done * FRAMES // step.total != (step.done - 1) * FRAMES // step.total:
            self.frames.append(to_pillow(step.image.float()))

    def write(self, last: Tensor, path: Path) -> None:
        """Write an MP4, or a GIF if there is no ffmpeg."""
        frames = [*self.frames, to_pillow(last)]
        content, ending = to_mp4(frames), ".mp4"
        if content is None:
            content, ending = to_gif(frames), ".gif"
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


def make_record(arguments: RunArguments, own: Arguments, loaded: Loaded) -> dict[str, Any]:
    model: nn.Module = loaded.prior or loaded.stage  # type: ignore[assignment]
    dtype = choose_dtype(arguments.precision, device_of_command(arguments.device))
    facts = {"global_step": loaded.step, "dtype": dtype_name(dtype)}
    return {**facts, **own.describe(), **model_hashes(model, loaded.run.model)}


OnStep = Callable[[GuideStep], None]
Make = Callable[[int | None, int, OnStep], Guided]


def fill(folder: SampleFolder, own: Arguments, starts: Starts, make: Make) -> int:
    """Make the images that a folder lacks; how many."""
    labels = own.prompts.classes or (None,)
    there = {label: folder.finished(label) for label in labels}
    numbers = range(own.num_samples)
    missing = [(label, n) for label in labels for n in numbers if n not in there[label]]
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
    device = device_of_command(arguments.device)
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
    folder = SampleFolder(
        Path(arguments.outdir or default) / str(loaded.step), make_record(arguments, own, loaded)
    )

    def make(label: int | None, number: int, on_step: OnStep) -> Guided:
        stream = (label or 0) * 2**32 + number
        options: dict[str, Any] = {"start": starts(stream), "number": stream, "on_step": on_step}
        return guide(loaded.stage, objectives[label], own.guidance, **options)

    new = fill(folder, own, starts, make)
    count = own.num_samples * len(objectives)
    print(f"{counted(count, 'image')} and grid.png in {folder.root} ({new} of them new)")


if __name__ == "__main__":
    main()

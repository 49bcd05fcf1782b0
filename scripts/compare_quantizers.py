"""Train first stages that differ in their quantizer alone, under one recipe, and compare them.

    python scripts/compare_quantizers.py
    python scripts/compare_quantizers.py --recipe quantizers/photographs --seeds 2
    python scripts/compare_quantizers.py --quantizers digits_vq digits_fsq --max_steps 200

The recipe is a config; a quantizer is a small one that is merged over it (configs/quantizers/).
Every one is trained with the same seeds. Of the validation images: L1, PSNR, the Fréchet distance
by a small classifier of the training images, the use of codes and the speed of training, as a table
in Markdown and JSON, and a picture of the same images through each. Runs go to logs/, as
`<quantizer>_seed<n>`; those that are finished are not trained again, and what was interrupted goes
on, when the command is repeated. Of a recipe or quantizer that has changed since, new runs are
trained beside the old ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from taming.command_line import Parser, add_flags, flag, from_flags
from taming.config import load_config
from taming.data.examples.photographs import write_tiles
from taming.errors import UserError, command
from taming.evaluation.results import command_line, make_result, markdown_table, write_result
from taming.evaluation.sources.dataset import DatasetSource
from taming.evaluation.sources.prepared import PreparedSource
from taming.evaluation.tasks.first_stage import LoadedFirstStage
from taming.evaluation.tasks.first_stage_comparison import comparison_picture
from taming.evaluation.tasks.quantizers import (
    BY,
    Evaluated,
    classifier_extractor,
    described,
    evaluate,
    evaluator_with,
    table_rows,
    unequal_bits,
)
from taming.shipped import config_names, find_config
from taming.training.apart import step_flags, train_apart
from taming.training.logged_times import read_seconds

SCRIPT = "compare_quantizers"
FOLDER = "quantizers/"  # of the shipped configs
LOGGED = "train/aeloss"  # whose times tell how fast training was
PHOTOGRAPHS = "data/photographs"  # where the recipe of that name reads tiles of them


@dataclass(frozen=True)
class Options:
    recipe: str = flag("digits_vqgan", "the config that all share", metavar="YAML")
    quantizers: tuple[str, ...] = flag(
        (),
        "configs that are merged over it (default: all shipped ones of this recipe)",
        metavar="YAML",
        nargs="+",
    )
    seeds: int = flag(5, "runs of each quantizer, with the seeds 0, 1, ...")
    max_steps: int = flag(-1, "end each training there, for a look; -1: the whole course")
    rows: int = flag(8, "images in the picture")
    outdir: Path | None = flag(
        None,
        "for table, picture and classifier (default: comparison/<recipe>, and of a look "
        "comparison/<recipe>_<n>_steps)",
        "-o",
    )

    def __post_init__(self) -> None:
        for name in ("seeds", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        step_flags(self.max_steps)

    @property
    def length(self) -> str:
        """What names say of trainings that end early."""
        return f"_{self.max_steps}_steps" if step_flags(self.max_steps) else ""

    def configs(self) -> dict[str, Path]:
        """The quantizers' configs by name; UserError if there are none, or two of one name."""
        kind = Path(self.recipe).stem.partition("_")[0]  # digits of digits_vqgan
        shipped = [name for name in config_names() if name.startswith(f"{FOLDER}{kind}_")]
        paths = [_config(name, kind) for name in self.quantizers or shipped]
        if not paths:
            raise UserError(
                f"there are no shipped quantizers for {self.recipe}; name some by --quantizers"
            )
        named = {path.stem: path for path in paths}
        if len(named) < len(paths):
            raise UserError("two of --quantizers have the same name; rename one")
        return named


def _config(name: str, kind: str) -> Path:
    """A config by its name, which of those in configs/quantizers may be the last part alone, also
    without the `kind` of the recipe: `digits_fsq`, `fsq`."""
    stem = name.removesuffix(".yaml")
    _refuse_another_recipes(stem.removeprefix(FOLDER), kind)
    shorts = (f"{FOLDER}{stem}", f"{FOLDER}{kind}_{stem}")
    return find_config(next((short for short in shorts if short in config_names()), name))


def _refuse_another_recipes(stem: str, kind: str) -> None:
    """Refuse (`UserError`) a shipped quantizer that is made for another shipped recipe."""
    shipped = [name.removeprefix(FOLDER) for name in config_names() if name.startswith(FOLDER)]
    other, kinds = stem.partition("_")[0], {name.partition("_")[0] for name in shipped}
    if stem in shipped and kind in kinds and other != kind:
        own = f"{FOLDER}{other}"
        recipe = own if own in config_names() else f"{other}_vqgan"
        raise UserError(f"{stem} is of another recipe; name that with --recipe {recipe}")


def train(options: Options, recipe: Path, name: str, config: Path) -> list[Path]:
    """The runs of a quantizer, one of each seed."""
    flags = ("--enable_progress_bar", "false", *step_flags(options.max_steps))
    runs = []
    for seed in range(options.seeds):
        run = f"{name}{options.length}_seed{seed}"
        start = ("--base", str(recipe), str(config), "-n", run, "--seed", str(seed))
        runs.append(train_apart(run, Path("logs"), start, flags))
    return runs


def prepare_data(recipe: Path) -> None:
    """Write tiles of the photographs that come with packages, if the recipe reads them and they are
    not there."""
    key = "data.params.train.params.training_images_list_file"
    listed = OmegaConf.select(load_config([recipe]), key, throw_on_missing=False)
    if listed == f"{PHOTOGRAPHS}/train.txt" and not Path(listed).is_file():
        write_tiles(Path(PHOTOGRAPHS))


def steps_a_second(run: Path) -> float | None:
    """Of a run's training, with its validation; None where too little was logged."""
    seconds = read_seconds(run / "tensorboard", LOGGED)
    if len(seconds) < 2:
        return None
    first, last = min(seconds), max(seconds)
    taken = seconds[last] - seconds[first]
    return (last - first) / taken if taken > 0 else None


@command
def main(argv: Sequence[str] | None = None) -> None:
    begun = time.monotonic()
    parser = Parser(description=__doc__)
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    recipe, configs = find_config(options.recipe), options.configs()
    outdir = options.outdir or Path("comparison", f"{recipe.stem}{options.length}")
    prepare_data(recipe)
    training = DatasetSource(recipe, "train", workers=0)
    images = PreparedSource(DatasetSource(recipe, "validation", workers=0))
    extractor = classifier_extractor(training, outdir)
    evaluator = evaluator_with(extractor)
    results: dict[str, list[Evaluated]] = {}
    shown: list[LoadedFirstStage] = []
    for name, config in configs.items():
        runs = train(options, recipe, name, config)
        stages = [LoadedFirstStage.load(run) for run in runs]
        results[name] = [
            evaluate(evaluator, stage, images, steps_a_second(run))
            for run, stage in zip(runs, stages, strict=True)
        ]
        shown.append(replace(stages[0], name=name.partition("_")[2] or name))
        print(markdown_table(table_rows(results)), flush=True)
    rows = table_rows(results)
    result = make_result(
        **described(results, extractor),
        seconds=time.monotonic() - begun,
        device=torch.device("cpu"),
        command=command_line(argv, SCRIPT),
    )
    notes = [f"{BY}.", *unequal_bits(results)]
    path = write_result(result, outdir / "quantizers.json", [markdown_table(rows), *notes])
    comparison_picture(evaluator, shown, images, options.rows).save(path.with_suffix(".png"))
    print(*unequal_bits(results), f"quantizers.json, its .md and .png are in {outdir}", sep="\n")


if __name__ == "__main__":
    main()

"""How well a transformer predicts the codes of a dataset: likelihood, by class and by position.

    python scripts/evaluate_transformer.py -r logs/<run>

Bits and nats per token and per value of the image, the share of tokens that were the likeliest,
a table of the classes, and maps of where in the image codes are hard to predict. The data are the
run's validation data, or those of --split, --data and of `key.path=value` overrides. JSON, Markdown
and plots go to `<run>/evaluation/`. An interrupted evaluation goes on when the same command is
given again; `torchrun --nproc_per_node 4 scripts/evaluate_transformer.py ...` shares the work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Sized
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch.utils.data import Subset

from taming.checkpoint import run_config
from taming.command_line import flag, from_flags, parse
from taming.config import plain, without_checkpoint_paths
from taming.data.checks import damage_found_later
from taming.devices import dtype_name, own_share
from taming.downloads import file_hash
from taming.errors import UserError, command, end_with_damaged
from taming.evaluation.arguments import CacheArguments
from taming.evaluation.metrics.likelihood import Likelihood, ModelLikelihood
from taming.evaluation.plots import plot_bars, plot_map, plotted
from taming.evaluation.presets import PRESET_HELP, noted, with_preset
from taming.evaluation.results import command_line, make_result, markdown_table, write_result
from taming.evaluation.sources.dataset import ItemSource
from taming.evaluation.sources.images import key_of
from taming.sampling.arguments import RunArguments, make_parser, require_positive
from taming.sampling.load import data_config, open_dataset

SCRIPT = "scripts/evaluate_transformer.py"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of this script, beside those of the run."""

    cache: CacheArguments
    data: str | None = flag(None, "with a data section (default: the run's)", metavar="YAML")
    split: str | None = flag(None, "validation (default), train or test")
    num_images: int | None = flag(None, "the first of the data (default: all)", "-n")
    batch_size: int = flag(16, "items at once")
    seed: int = flag(0, "decides each item, together with its number")
    preset: str | None = flag(None, PRESET_HELP)

    def __post_init__(self) -> None:
        require_positive(num_images=self.num_images, batch_size=self.batch_size)


def open_images(own: Arguments, data: DictConfig) -> Subset[Any]:
    """The items to evaluate, each decided by its index and --seed alone."""
    with damage_found_later():
        dataset = open_dataset(data, own.split)
    dataset.seed = own.seed
    if not isinstance(dataset.dataset, Sized):
        raise UserError("the data are a stream without a length, which cannot be evaluated")
    return Subset(dataset, range(min(len(dataset), own.num_images or len(dataset))))


def describe_data(own: Arguments, data: DictConfig) -> dict[str, Any]:
    split = own.split or next(s for s in ("validation", "train", "test") if data.params.get(s))
    about = {"kind": "dataset", "split": split, "dataset": plain(data.params[split])}
    return {**about, "seed": own.seed}


def write(
    result: dict[str, Any], likelihood: Likelihood, outdir: Path, ends: Sequence[str] = ()
) -> Path:
    """All files of a result; returns the JSON's path."""
    path, classes = outdir / "transformer.json", likelihood.by_class()
    images = plotted(plot_map, likelihood.map(), outdir / "positions.png", "nats per token")
    tables = []
    if classes:
        tables = [markdown_table([{"class": label} | row for label, row in classes.items()])]
        nats = {label: row["nats_per_token"] for label, row in classes.items()}
        images += plotted(plot_bars, nats, outdir / "classes.png", "nats per token")
    tables += [f"![{image.stem}]({image.name})" for image in images]
    return write_result(result, path, [*tables, *ends])


@command
def main(argv: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    parser = make_parser("Evaluate a transformer's likelihood.", Arguments)
    args, overrides = parse(parser, with_preset(parser, argv, SCRIPT))
    arguments = from_flags(RunArguments, args, overrides=tuple(overrides))
    own = from_flags(Arguments, args)
    model, run, step, dtype = arguments.load()
    base = [own.data] if own.data else arguments.base
    data = data_config(run, base, overrides, own.data is not None)
    dataset, checkpoint = open_images(own, data), file_hash(run.checkpoint)
    config = run_config(run, arguments.base, overrides, ["model"])
    config = without_checkpoint_paths(config.model)
    identity = key_of(checkpoint=checkpoint, config=plain(config), dtype=str(dtype))
    runner = own.cache.runner(own.batch_size)
    keys = (model.first_stage_key, model.cond_stage_key)
    items = ItemSource(dataset, keys, own.cache.workers)
    key = runner.key_for(items, likelihood=identity)
    manifest, likelihood = runner.run(items, partial(ModelLikelihood, model), key, "images")
    runner.finish()
    if own_share()[0] > 0:
        return
    scores = asdict(likelihood.compute())
    protocol = {
        "checkpoint": str(run.checkpoint),
        "checkpoint_hash": checkpoint,
        "global_step": step,
        "codes": model.n_codes,
        "code_shape": list(likelihood.shape or ()),
        "order": type(model.permuter).__name__,
        "precision": dtype_name(dtype),
        "batch_size": own.batch_size,
    }
    sets = {"images": describe_data(own, data) | manifest.describe()}
    seconds, line = time.monotonic() - start, command_line(argv, SCRIPT)
    result = make_result(scores, protocol, sets, seconds=seconds, device=model.device, command=line)
    result["by_class"] = likelihood.by_class()
    tables = noted(result, own.preset)
    result["by_position"] = likelihood.map().tolist()
    outdir = Path(arguments.outdir or run.folder / "evaluation")
    path = write(result, likelihood, outdir, tables)
    print_scores(scores)
    print(
        f"step {step}; {path.name}, {path.with_suffix('.md').name} and plots are in {path.parent}"
    )
    end_with_damaged(runner.left_out)


def print_scores(scores: dict[str, Any]) -> None:
    print(
        f"{scores['nats_per_token']:.4f} nats per token, {scores['bits_per_token']:.4f} bits "
        f"(uniform: {scores['uniform_nats_per_token']:.4f} nats)"
    )
    print(
        f"{scores['nats_per_dimension']:.5f} nats per dimension, "
        f"{scores['bits_per_dimension']:.5f} bits, of {scores['images']} images"
    )
    print(f"likeliest token right: {scores['top_1']:.2%}")


if __name__ == "__main__":
    main()

"""A transformer's likelihood of the codes of a dataset, from a run's folder to numbers."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.data import Subset

from taming.checkpoint import Run, run_config
from taming.command_line import flag
from taming.config import plain, without_checkpoint_paths
from taming.data.checks import damage_found_later
from taming.devices import dtype_name, own_share
from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.arguments import CacheArguments
from taming.evaluation.checkpoints import describe_checkpoint
from taming.evaluation.metrics.likelihood import Likelihood, ModelLikelihood
from taming.evaluation.sources.dataset import ItemSource
from taming.evaluation.sources.images import key_of
from taming.evaluation.tasks.time_ahead import Part, part_of_pass
from taming.sampling.arguments import LoadedRun, RunArguments, require_positive
from taming.sampling.load import data_config, open_dataset
from taming.weight_choice import weight_choice


@dataclass(frozen=True, kw_only=True)
class LikelihoodArguments:
    """Flags that choose the data, beside those of the run."""

    cache: CacheArguments
    data: str | None = flag(None, "with a data section (default: the run's)", metavar="YAML")
    split: str | None = flag(None, "validation (default), train or test")
    num_images: int | None = flag(None, "the first of the data (default: all)", "-n")
    batch_size: int = flag(16, "items at once")
    seed: int = flag(0, "decides each item, together with its number")

    def __post_init__(self) -> None:
        require_positive(num_images=self.num_images, batch_size=self.batch_size)


@dataclass(frozen=True)
class MeasuredLikelihood:
    """The likelihood of a run's transformer, and how it was measured."""

    likelihood: Likelihood
    run: Run
    step: int
    device: torch.device
    protocol: dict[str, Any]  # as JSON values, like the next
    images: dict[str, Any]
    left_out: list[str]  # a sentence per damaged image


def measure_run(arguments: RunArguments, own: LikelihoodArguments) -> MeasuredLikelihood | None:
    """The likelihood of a run; None in processes other than that of rank 0.

    Raises UserError for runs and data that cannot be read.
    """
    loaded, data, items = _open(arguments, own)
    checkpoint, model = file_hash(loaded.run.checkpoint), loaded.model
    runner = own.cache.runner(own.batch_size)
    key = runner.key_for(items, likelihood=_identity(arguments, loaded, checkpoint))
    manifest, likelihood = runner.run(items, partial(ModelLikelihood, model), key, "images")
    runner.finish()
    if own_share()[0] > 0:
        return None
    return MeasuredLikelihood(
        likelihood=likelihood,
        run=loaded.run,
        step=loaded.step,
        device=model.device,
        protocol=_protocol(own, loaded, checkpoint, likelihood),
        images=_describe_data(own, data) | manifest.describe(),
        left_out=runner.left_out,
    )


def _open(
    arguments: RunArguments, own: LikelihoodArguments
) -> tuple[LoadedRun, DictConfig, ItemSource]:
    """The run, the config of the data, and the data."""
    loaded = arguments.load()
    base = [own.data] if own.data else arguments.base
    data = data_config(loaded.run, base, arguments.overrides, own.data is not None)
    keys = (loaded.model.first_stage_key, loaded.model.cond_stage_key)
    return loaded, data, ItemSource(_open_images(own, data), keys, own.cache.workers)


def time_of_run(arguments: RunArguments, own: LikelihoodArguments) -> Part:
    """How long `measure_run` will take, by a trial; raises UserError as it does."""
    loaded, _, items = _open(arguments, own)
    count = ModelLikelihood(loaded.model).update
    return part_of_pass("evaluating the likelihood of", items, count, own.batch_size)


def _identity(arguments: RunArguments, loaded: LoadedRun, checkpoint: str) -> str:
    config = run_config(loaded.run, arguments.base, arguments.overrides, ["model"])
    model = plain(without_checkpoint_paths(config.model))
    return key_of(
        checkpoint=checkpoint, config=model, dtype=str(loaded.dtype), weights=weight_choice()
    )


def _open_images(own: LikelihoodArguments, data: DictConfig) -> Subset[Any]:
    """The items to evaluate, each decided by its index and --seed alone."""
    with damage_found_later():
        dataset = open_dataset(data, own.split)
    dataset.seed = own.seed
    if not isinstance(dataset.dataset, Sized):
        raise UserError("the data are a stream without a length, which cannot be evaluated")
    return Subset(dataset, range(min(len(dataset), own.num_images or len(dataset))))


def _describe_data(own: LikelihoodArguments, data: DictConfig) -> dict[str, Any]:
    split = own.split or next(s for s in ("validation", "train", "test") if data.params.get(s))
    about = {"kind": "dataset", "split": split, "dataset": plain(data.params[split])}
    return {**about, "seed": own.seed}


def _protocol(
    own: LikelihoodArguments, loaded: LoadedRun, checkpoint: str, likelihood: Likelihood
) -> dict[str, Any]:
    model = loaded.model
    return {
        **describe_checkpoint(loaded.run, loaded.step, checkpoint),
        "checkpoint": str(loaded.run.checkpoint),
        "codes": model.n_codes,
        "code_shape": list(likelihood.shape or ()),
        "order": model.order_name,
        **({"measured_in": "rows"} if model.reading.any else {}),
        "precision": dtype_name(loaded.dtype),
        "batch_size": own.batch_size,
    }

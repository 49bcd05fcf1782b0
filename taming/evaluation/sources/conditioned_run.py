"""Samples of a run for the conditions of its data: segmentations, depth, edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from taming.checkpoint import find_run, run_config
from taming.config import get_obj_from_str, without_checkpoint_paths
from taming.data.checks import damage_found_later
from taming.errors import DamagedImage, UserError, sentence
from taming.evaluation.sources.dataset import ItemSource, KeptItems
from taming.evaluation.sources.images import (
    SIZES_LOOKED_AT,
    ImageSource,
    SourceImage,
    key_of,
)
from taming.evaluation.sources.resize import Size, common_size
from taming.evaluation.sources.run import RunSource
from taming.models.dummy_cond_stage import DummyCondStage
from taming.models.first_stage import condition_of
from taming.modules.util import ConditionKind
from taming.sampling.engine import rounds_by_batch
from taming.sampling.inputs import SampleInputs, inputs_of_item
from taming.sampling.items import sample_items
from taming.sampling.load import data_config, open_dataset
from taming.sampling.plan import SamplingPlan
from taming.sampling.requests import request_for_condition
from taming.sampling.sizes import pixels_per_token
from taming.shipped import script

# Kinds of conditions that scripts/sample_fast.py makes itself.
MADE_WITHOUT_DATA: tuple[ConditionKind, ...] = ("none", "class", "coordinates")


def needs_data_conditions(path: str | Path, plan: SamplingPlan | None = None) -> bool:
    """Whether a run's conditions come from data, as segmentations do.

    Raises UserError if there is no such run, or it samples scenes, which have their own script.
    """
    plan = plan or SamplingPlan()
    config = run_config(find_run(path), plan.base, plan.overrides, ["model"])
    model = without_checkpoint_paths(config.model)
    params = model.get("params") or {}
    stage = params.get("cond_stage_config")
    if params.get("unconditional") or stage in (None, "__is_unconditional__"):
        return False
    if not isinstance(stage, Mapping):  # a first stage: the model's own, or that of a run
        return True
    stage_class = get_obj_from_str(str(stage.get("target")))
    if issubclass(stage_class, DummyCondStage):
        raise UserError(f"{path} samples scenes; evaluate them with {script('evaluate_scenes')}")
    return condition_of(stage_class)[0] not in MADE_WITHOUT_DATA


class ConditionedRunSource(KeptItems, RunSource):
    """One sample for each of the first `num_samples` items of the run's data, at their sizes.

    They equal those of scripts/make_samples.py with the same settings, in bf16 also the batch size.

    Raises UserError if there is no such run or no such data, or for flags of classes.
    """

    def __init__(
        self,
        path: str | Path,
        plan: SamplingPlan | None = None,
        split: str = "validation",
        workers: int | None = None,
    ) -> None:
        super().__init__(path, plan)
        self.split, self.workers = split, workers
        for name in ("classes", "classifier", "size"):
            if vars(self.plan)[name] is not None:
                raise UserError(
                    f"{path} samples for the conditions of its data; leave out --{name}"
                )
        data = data_config(self.run, self.plan.base, self.plan.overrides)
        with damage_found_later():
            self.dataset = open_dataset(data, split)
        self.kept = range(len(self.dataset))

    @property
    def labels(self) -> list[int | None]:
        """No classes."""
        return [None]

    def __len__(self) -> int:
        return min(self.plan.num_samples, len(self.kept))

    def own_image_size(self) -> Size | None:
        """That of the first samples, if they agree."""
        factor, shapes = pixels_per_token(self.model), []
        for number in self.kept[:SIZES_LOOKED_AT]:
            with suppress(DamagedImage):
                shapes.append(inputs_of_item(self.model, self.dataset, number).shape)
        return common_size((rows * factor, columns * factor) for rows, columns in shapes)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"conditions_of": self.split}

    @cached_property
    def _conditions_key(self) -> str:
        keys = (self.model.first_stage_key, self.model.cond_stage_key)
        items = ItemSource(self.dataset, keys, self.workers)
        items.pass_over_damage()
        return items.content_key()

    def content_key(self) -> str:
        return key_of(run=super().content_key(), conditions=self._conditions_key)

    batches = ImageSource.batches  # not those of samples by class

    def images(self, indices: Sequence[int], batch_size: int) -> Iterator[SourceImage]:
        model, plan = self.model, self.plan
        index_of = {self.kept[index]: index for index in indices}  # by the item's number
        items = self._inputs(index_of)
        samples = sample_items(
            model,
            items,
            lambda i: request_for_condition(model, i.c, i.number, i.shape),
            plan.settings,
            batch_size=min(plan.at_once(batch_size), len(self)),
            seed=plan.seed,
            compiled=plan.compiled,
            filled=rounds_by_batch(plan.dtype),
        )
        for sample in samples:
            index = index_of[sample.number]
            image = self._resized(sample, index, f"sample {sample.number}")
            yield replace(image, label=None)

    def _inputs(self, index_of: Mapping[int, int]) -> Iterator[SampleInputs]:
        for number, index in index_of.items():
            try:
                yield inputs_of_item(self.model, self.dataset, number)
            except DamagedImage as error:
                self.note_damage(index, sentence(error))

"""Images that a run draws for the conditions of its data: segmentations, depth, edges."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from taming.checkpoint import find_run, run_config
from taming.config import without_checkpoint_paths
from taming.errors import UserError
from taming.evaluation.cache import key_of
from taming.evaluation.sources.base import by_size
from taming.evaluation.sources.picture import Picture, pixel_digest
from taming.evaluation.sources.run import Drawing, RunSource, to_pixels
from taming.evaluation.tasks.transformer import TransformerData
from taming.sampling import sample_images
from taming.sampling.inputs import inputs_of_items
from taming.sampling.load import data_config, open_dataset
from taming.sampling.requests import request_for_condition

# What scripts/sample_fast.py draws for: classes, coordinates, nothing.
KNOWN_BEFOREHAND = ("Labelator", "CoordStage", "SOSProvider")
SCENES = "DummyCondStage"


def draws_for_data(path: str | Path, drawing: Drawing | None = None) -> bool:
    """Whether a run's conditions come from data, as segmentations do.

    Raises:
        UserError: where there is no such run, or it draws scenes, which have their own script.
    """
    drawing = drawing or Drawing()
    model = run_config(find_run(path), drawing.base, drawing.overrides).model
    params = without_checkpoint_paths(model).get("params") or {}
    stage = params.get("cond_stage_config")
    target = str(stage.get("target", "")) if isinstance(stage, Mapping) else str(stage)
    if target.endswith(SCENES):
        raise UserError(f"{path} draws scenes; evaluate them with scripts/evaluate_scenes.py")
    free = params.get("unconditional") or target == "__is_unconditional__" or stage is None
    return not free and not target.endswith(KNOWN_BEFOREHAND)


class ConditionedRunSource(RunSource):
    """One sample for each of the first `num_samples` items of the run's data, at their sizes.

    They equal those of scripts/make_samples.py with the same settings.

    Args:
        split: of the run's data.

    Raises:
        UserError: where there is no such run or no such data, or for flags of classes.
    """

    def __init__(
        self,
        path: str | Path,
        drawing: Drawing | None = None,
        split: str = "validation",
        workers: int | None = None,
    ) -> None:
        super().__init__(path, drawing)
        self.split, self.workers = split, workers
        for name in ("classes", "classifier", "height", "width"):
            if getattr(self.drawing, name) is not None:
                raise UserError(f"{path} draws for the conditions of its data; leave out --{name}")
        data = data_config(self.run, self.drawing.base, self.drawing.overrides)
        self.dataset = open_dataset(data, split)

    def with_drawing(self, drawing: Drawing) -> ConditionedRunSource:
        """The same run and data, drawn otherwise."""
        other = ConditionedRunSource(self.path, drawing, self.split, self.workers)
        for name in ("_loaded", "checkpoint_hash", "_conditions_key"):
            other.__dict__[name] = getattr(self, name)
        return other

    @property
    def labels(self) -> list[int | None]:
        """No classes."""
        return [None]

    def __len__(self) -> int:
        return min(self.drawing.num_samples, len(self.dataset))

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"conditions_of": self.split}

    @cached_property
    def _conditions_key(self) -> str:
        return TransformerData(self.dataset, self._loaded[0], self.workers).content_key()

    def content_key(self) -> str:
        return key_of(run=super().content_key(), conditions=self._conditions_key)

    def batches(
        self, batch_size: int, share: tuple[int, int] = (0, 1), skip: Container[int] = ()
    ) -> Iterator[list[Picture]]:
        numbers = [n for n in range(share[0], len(self), share[1]) if n not in skip]
        return by_size(self._drawn(numbers, batch_size), batch_size)

    def _drawn(self, numbers: Sequence[int], batch_size: int) -> Iterator[Picture]:
        model, d = self._loaded[0], self.drawing
        examples = inputs_of_items(model, self.dataset, numbers)
        for shape, group in groupby(examples, key=lambda example: example.shape):
            requests = (request_for_condition(model, e.c, e.number, e.shape) for e in group)
            for sample in sample_images(
                model,
                requests,
                d.settings,
                batch_size=batch_size,
                seed=d.seed,
                shape=shape,
                compiled=d.compiled,
            ):
                pixels = to_pixels(sample.image)
                name = f"sample {sample.number}"
                digest = pixel_digest(pixels.numpy())
                yield Picture(sample.number, pixels, None, name, digest)

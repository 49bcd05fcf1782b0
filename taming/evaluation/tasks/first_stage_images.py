"""Which images first stages are compared on: a folder's, or a dataset's, in whole codes of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taming.command_line import flag, parse_size
from taming.errors import UserError
from taming.evaluation.sources.dataset import DatasetSource
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.images import LoadedSource
from taming.evaluation.sources.prepared import LabelSource, PreparedSource
from taming.evaluation.sources.resize import CENTER, FILTERS, PAPER_SIDE, Resizing, require_name
from taming.evaluation.tasks.first_stage import LoadedFirstStage
from taming.limits import check_picture


def parse_filters(text: str) -> tuple[str, ...]:
    """The names of `FILTERS` in a comma list; UserError for others, and for none."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names or ("",):
        require_name("filter", name, tuple(FILTERS))
    return names


@dataclass(frozen=True, kw_only=True)
class FirstStageImages:
    """Flags that choose the images; the first run's validation data by default."""

    images: Path | None = flag(
        None, "of images (default: the first run's validation data)", metavar="FOLDER"
    )
    deep: bool = flag(False, "and of folders below it")
    data: Path | None = flag(None, "with a data section, for the images", metavar="YAML")
    split: str = flag("validation", "train, validation or test")
    image_key: str | None = flag(None, "the items' entry (default: the first stage's own)")
    size: tuple[int, int] | None = flag(
        None,
        "resize and crop to height,width in pixels, or to a square (default: as is)",
        parse=parse_size,
    )
    num_images: int | None = flag(None, "the first n images (default: all)", "-n")

    def __post_init__(self) -> None:
        if self.images and self.data:
            raise UserError("--images and --data both name the images; give one of them")
        if self.num_images is not None and self.num_images < 1:
            raise UserError(f"--num_images must be at least 1, not {self.num_images}")
        if self.size is not None:
            check_picture(*self.size)

    def prepared(
        self,
        stages: Sequence[LoadedFirstStage],
        base: Sequence[str] = (),
        overrides: Sequence[str] = (),
        workers: int | None = None,
        resize: str | None = None,
    ) -> PreparedSource:
        """The same images for all first stages.

        Args:
            resize: one of `FILTERS`, which makes the largest centered crop of each whole image so
                large as `size` says; of 256 pixels a side by default.

        Raises UserError if there are none, or they are of another kind than the stages take.
        """
        multiple = math.lcm(*(stage.model.downsampling_factor for stage in stages))
        if resize is not None and stages[0].model.reads_labels:
            raise UserError("--reference_resize is for images in color, not for segmentations")
        source = self._source(stages, base, overrides, workers)
        if resize is not None:
            source.resizing = Resizing(resize, CENTER, self.size or (PAPER_SIDE, PAPER_SIDE))
        size = None if resize else self.size
        return PreparedSource(source, size, multiple, self.num_images)

    def _source(
        self,
        stages: Sequence[LoadedFirstStage],
        base: Sequence[str],
        overrides: Sequence[str],
        workers: int | None,
    ) -> LoadedSource:
        reads_labels = stages[0].model.reads_labels
        takes = "and the first stage takes segmentations"
        if self.images and reads_labels:
            raise UserError(f"--images holds images in color, {takes}")
        if self.size and reads_labels:
            raise UserError(f"--size resizes images in color, {takes}")
        if self.images:
            return FolderSource(self.images, self.deep or None, workers)
        config = [self.data] if self.data else self._own_data(stages, base)
        key = self.image_key or stages[0].image_key
        runs = [stage.run for stage in stages]
        options: dict[str, Any] = {"overrides": overrides, "workers": workers, "runs": runs}
        if reads_labels:
            labels = stages[0].model.channels
            return LabelSource(labels, config, self.split, key, **options)
        return DatasetSource(config, self.split, key, **options)

    def _own_data(
        self, stages: Sequence[LoadedFirstStage], base: Sequence[str]
    ) -> list[str | Path]:
        """The configs of the first run that has data of the split."""
        for stage in stages:
            if stage.config.get("data", {}).get("params", {}).get(self.split):
                return [*stage.run.configs, *base]
        raise UserError(
            f"none of the runs has {self.split} data of its own; give --images FOLDER or --data "
            "YAML"
        )

"""A folder of samples without classes that one command fills, and goes on to fill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling.bars import ImageBar
from taming.sampling.engine import Sample, rounds_by_batch, sample_images
from taming.sampling.folder import FolderWriter, SampleFolder
from taming.sampling.requests import Request
from taming.sampling.settings import SampleSettings


@dataclass(frozen=True)
class Filling:
    """What a folder without classes lacks, and how it goes on.

    Attributes:
        missing: the numbers of its samples that are to be made.
        batch_size: with which they are, and with `filled` always so many at once: for
            `sample_images`.
    """

    writer: FolderWriter
    missing: list[int]
    batch_size: int
    filled: bool

    def save(self, sample: Sample, **own: Any) -> None:
        """Write a sample soon, whatever its label, and what its record has beside the folder's."""
        self.writer.save(replace(sample, label=None), **own)

    def sample(
        self,
        model: Net2NetTransformer,
        requests: Iterable[Request],
        settings: SampleSettings,
        *,
        seed: int,
        shape: tuple[int, int],
        bar: ImageBar,
    ) -> None:
        """Make the samples of these `requests`, see `sample_images`, and save each."""
        samples = sample_images(
            model,
            requests,
            settings,
            batch_size=self.batch_size,
            seed=seed,
            shape=shape,
            on_step=bar,
            filled=self.filled,
        )
        for sample in samples:
            self.save(sample)
            bar.image()


@contextmanager
def filling(
    folder: SampleFolder, dtype: torch.dtype, batch_size: int, wanted: int
) -> Iterator[Filling]:
    """A context in which this command alone makes samples 0 to `wanted` - 1 of `folder`.

    Raises:
        UserError: before anything is made, if those that are there were made otherwise; and as
            `FolderWriter` does.
    """
    folder.finished(None)
    with FolderWriter(folder) as writer:
        size = folder.batch_size_for(dtype, batch_size, wanted)
        finished = folder.finished(None)
        missing = [n for n in range(wanted) if n not in finished]
        yield Filling(writer, missing, size, rounds_by_batch(dtype))

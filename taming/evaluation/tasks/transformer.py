"""A transformer on a data set: one pass, shared among processes, continued where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from taming.errors import UserError
from taming.evaluation.metrics.base import CountedTally
from taming.evaluation.metrics.likelihood import Likelihood, add_batch
from taming.evaluation.runner import Reading
from taming.evaluation.sources.base import hash_pictures, worker_count
from taming.evaluation.sources.picture import Picture

LABEL = "class_label"


@dataclass(frozen=True)
class ItemPicture(Picture):
    """An item of a data set: what a model reads of it; `digest` is over all of that."""

    item: Mapping[str, Any] = field(default_factory=dict)


class TransformerData:
    """The items of a map-style data set as a `Net2NetTransformer` reads them.

    Args:
        dataset: its items have the model's stage keys.
        workers: processes that load; by default see `worker_count`.

    Raises:
        UserError: for an empty data set.
    """

    def __init__(self, dataset: Any, model: Any, workers: int | None = None) -> None:
        self.dataset, self.workers = dataset, workers
        self.image_key, self.condition_key = model.first_stage_key, model.cond_stage_key
        if not len(dataset):
            raise UserError("there are no images to evaluate; check the data section of the config")

    def __len__(self) -> int:
        return len(self.dataset)

    def describe(self) -> dict[str, Any]:
        return {"kind": "dataset", "image_key": self.image_key, "condition": self.condition_key}

    @cached_property
    def _content_key(self) -> str:
        return hash_pictures(self.batches(32), len(self))

    def content_key(self) -> str:
        return self._content_key

    def fingerprint(self) -> str | None:
        return self._content_key

    def batches(
        self, batch_size: int, share: tuple[int, int] = (0, 1), skip: Container[int] = ()
    ) -> Iterator[list[Picture]]:
        indices = [n for n in range(share[0], len(self), share[1]) if n not in skip]
        loader = DataLoader(
            _Items(self.dataset, self.image_key, self.condition_key),
            batch_size=batch_size,
            sampler=indices,
            num_workers=worker_count(len(indices), self.workers),
            collate_fn=list,
        )
        for items in loader:
            yield [self._picture(*parts) for parts in items]

    def _picture(self, index: int, digest: bytes, item: Mapping[str, Any]) -> ItemPicture:
        image = torch.as_tensor(item[self.image_key])
        pixels = image.permute(2, 0, 1) if image.dim() == 3 else image[None]
        label = int(item[LABEL]) if LABEL in item else None
        return ItemPicture(index, pixels, label, f"item {index}", digest, item=item)


class _Items(Dataset[Any]):
    """What the model reads of items, with their index and the SHA-256 over it."""

    def __init__(self, dataset: Any, *keys: str) -> None:
        self.dataset, self.keys = dataset, sorted(set(keys))

    def __getitem__(self, index: int) -> tuple[int, bytes, dict[str, Any]]:
        item = self.dataset[index]
        digest = hashlib.sha256()
        for key in self.keys:
            if key not in item:
                known = ", ".join(map(str, item))
                raise UserError(
                    f"the data has no '{key}' (it has {known}); set the model's stage keys"
                )
            value = item[key].numpy() if isinstance(item[key], Tensor) else np.asarray(item[key])
            digest.update(f"{key} {value.dtype} {value.shape}".encode() + value.tobytes())
        read = {key: item[key] for key in (*self.keys, LABEL) if key in item}
        return index, digest.digest(), read


class TransformerTally(CountedTally):
    """What was seen of a data set, and how likely it was; see `metrics.base.Tally`."""

    def __init__(self, model: Any, size: int) -> None:
        self.model = model
        super().__init__(size, Likelihood())

    def add(self, pictures: Sequence[Picture]) -> None:
        """Add a batch of `ItemPicture`s.

        Raises:
            UserError: for images of several sizes.
        """
        sizes = {tuple(picture.pixels.shape) for picture in pictures}
        if len(sizes) > 1:
            raise UserError(
                f"the images have sizes {sorted(sizes)}; likelihoods are of images of one size, "
                "as in training: set a size or a crop in the data section"
            )
        items = [picture.item for picture in pictures if isinstance(picture, ItemPicture)]
        add_batch(self.counted, self.model, default_collate(items), LABEL)
        self.content.add(pictures)


def evaluate_transformer(
    model: Any, data: TransformerData, identity: str, reading: Reading
) -> TransformerTally:
    """The likelihood of all items; complete in the process of rank 0 alone.

    Args:
        model: a `Net2NetTransformer` in eval mode.
        identity: hash of what decides the model: weights, config, precision.
        reading: batch size, on which numbers do not depend but for rounding, and cache.

    Raises:
        UserError: for items that the model cannot read.
    """
    return reading.count(
        data, "images", lambda: TransformerTally(model, len(data)), likelihood=identity
    )

"""A transformer on a data set: one pass, shared among processes, continued where it stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from taming.errors import UserError
from taming.evaluation.cache import SAVE_EVERY, Cache, State, Timer, key_of
from taming.evaluation.content import Content, Picture
from taming.evaluation.likelihood import Likelihood, add_batch
from taming.evaluation.processes import gather_states
from taming.evaluation.sources import worker_count
from taming.sampling.load import own_share

LABEL = "class_label"
Items = list[tuple[int, bytes, Mapping[str, Any]]]


class Measured:
    """What was seen of a data set of `size` items, and how likely it was."""

    def __init__(self, size: int) -> None:
        self.content, self.likelihood = Content(size), Likelihood()

    def merge(self, other: Measured) -> None:
        """Add what `other` has seen, of other items of the set."""
        self.content.merge(other.content)
        self.likelihood.merge(other.likelihood)

    def state(self) -> State:
        """All of it as arrays."""
        parts = {"content": self.content.state(), "likelihood": self.likelihood.state()}
        return {f"{name}/{key}": a for name, state in parts.items() for key, a in state.items()}

    @classmethod
    def from_state(cls, state: State) -> Measured:
        """What `state` was taken of."""
        parts: dict[str, State] = {"content": {}, "likelihood": {}}
        for path, array in state.items():
            name, _, key = path.partition("/")
            parts[name][key] = array
        new = cls(0)
        new.content = Content.from_state(parts["content"])
        new.likelihood = Likelihood.from_state(parts["likelihood"])
        return new


@dataclass
class TransformerReading:
    """Goes through a data set with a `Net2NetTransformer`.

    Attributes:
        model: in eval mode.
        dataset: map-style; items have the model's stage keys.
        identity: hash of what decides the model: weights, config, precision.
        batch_size: items of a forward pass; numbers do not depend on it, but for rounding.
        workers: processes that load; by default see `worker_count`.
        cache: holds what an interrupted evaluation had. It goes on where the same weights see the
            same items: those that it had seen are read again, and have to be the same.
        save_every: seconds between two saves.
    """

    model: Any
    dataset: Any
    identity: str
    batch_size: int = 16
    workers: int | None = None
    cache: Cache = field(default_factory=Cache)
    save_every: float = SAVE_EVERY

    def __call__(self) -> Measured:
        """Everything, in the process of rank 0; the others have their shares.

        Raises:
            UserError: for items that the model cannot read, or an empty data set.
        """
        size, (rank, processes) = len(self.dataset), own_share()
        if not size:
            raise UserError("there are no images to evaluate; check the data section of the config")
        key = key_of(likelihood=self.identity, size=size)
        measured = self._continued(key, size) if rank == 0 else Measured(size)
        done = set(gather_states(measured.content.indices().tolist())[0])
        indices = [n for n in range(rank, size, processes) if n not in done]
        timer = Timer(self.save_every)
        with tqdm(total=size, initial=len(done), unit="image", disable=rank > 0) as bar:
            for items in self._items(indices):
                self._add(measured, items)
                bar.update(min(len(items) * processes, size - bar.n))
                if timer.due():
                    start = time.monotonic()
                    self.cache.save_part(key, rank, measured.state())
                    timer.saved(time.monotonic() - start)
        if processes > 1:  # others may need hours more
            self.cache.save_part(key, rank, measured.state())
        joined = self._joined(measured, size)
        if rank == 0:
            self.cache.forget_parts(key)
        return joined

    def _items(self, indices: Sequence[int]) -> Iterator[Items]:
        stages = (self.model.first_stage_key, self.model.cond_stage_key)
        loader = DataLoader(
            _Digested(self.dataset, stages),
            batch_size=self.batch_size,
            sampler=indices,
            num_workers=worker_count(len(indices), self.workers),
            collate_fn=list,
        )
        return iter(loader)

    def _add(self, measured: Measured, items: Items) -> None:
        kept = {self.model.first_stage_key, self.model.cond_stage_key, LABEL}
        sizes = {np.shape(item[self.model.first_stage_key]) for _, _, item in items}
        if len(sizes) > 1:
            raise UserError(
                f"the images have sizes {sorted(sizes)}; likelihoods are of images of one size, "
                "as in training: set a size or a crop in the data section"
            )
        batch = default_collate(
            [{k: v for k, v in item.items() if k in kept} for *_, item in items]
        )
        add_batch(measured.likelihood, self.model, batch, LABEL)
        measured.content.add(self._picture(*parts) for parts in items)

    def _picture(self, index: int, digest: bytes, item: Mapping[str, Any]) -> Picture:
        image = torch.as_tensor(item[self.model.first_stage_key])
        label = item.get(LABEL)
        pixels = image.permute(2, 0, 1) if image.dim() == 3 else image[None]
        return Picture(index, pixels, None if label is None else int(label), digest=digest)

    def _continued(self, key: str, size: int) -> Measured:
        """What interrupted processes had seen, if the data are still what they saw."""
        measured = Measured(size)
        for state in self.cache.parts(key):
            part = Measured.from_state(state)
            overlap = (part.content.seen & measured.content.seen).any()
            if not overlap and self._unchanged(part.content):
                measured.merge(part)
        if measured.likelihood.images:
            self.cache.save_part(key, 0, measured.state())
            self.cache.forget_parts(key, but=0)
        return measured

    def _unchanged(self, content: Content) -> bool:
        indices = content.indices().tolist()
        with tqdm(total=len(indices), desc="checking what was done", leave=False) as bar:
            for items in self._items(indices):
                bar.update(len(items))
                if any(content.digests[n].tobytes() != digest for n, digest, _ in items):
                    return False
        return True

    def _joined(self, measured: Measured, size: int) -> Measured:
        rank, processes = own_share()
        if processes == 1:
            return measured
        states = gather_states(measured.state())
        joined = Measured(size)
        for state in states if rank == 0 else []:
            joined.merge(Measured.from_state(state))
        return joined if rank == 0 else measured


class _Digested(Dataset[Any]):
    """Items with their index and the SHA-256 of what the model reads of them."""

    def __init__(self, dataset: Any, keys: Collection[str]) -> None:
        self.dataset, self.keys = dataset, sorted(set(keys))

    def __getitem__(self, index: int) -> tuple[int, bytes, Any]:
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
        return index, digest.digest(), item

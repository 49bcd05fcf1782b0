"""Which weights numbers are of: how results say it, and whether two of them say the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from taming.checkpoint import Run, model_hashes
from taming.downloads import file_hash
from taming.errors import UserError
from taming.sampling.folder import record_of
from taming.weight_choice import EMA, WeightChoice, weight_choice

HASH = "checkpoint_hash"
# In the description of a folder of samples or reconstructions: what their own records say of the
# model. What differs among them is `SEVERAL`.
MADE_WITH, SEVERAL = "made_with", "several"
_OF_MODEL = ("weights", "config", "global_step", "dtype")
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


def describe_checkpoint(run: Run, step: int, known_hash: str | None = None) -> dict[str, Any]:
    """The checkpoint of a run that was loaded, and what of it (`--weights`), as JSON values.

    Args:
        step: its global step.
        known_hash: SHA-256 of its file, which is read otherwise.
    """
    return {
        "checkpoint": run.checkpoint.name,
        HASH: known_hash or file_hash(run.checkpoint),
        **weight_choice().describe(),
        "global_step": step,
    }


def made_with(files: Iterable[str]) -> dict[str, Any]:
    """What the records in images say of the model that made them, as JSON values: `MADE_WITH`.

    It is empty if the first PNG has no record, as photographs do not: no other is read then.
    """
    found: list[dict[str, Any]] = []
    for file in files:
        if not file.endswith(".png"):
            continue
        try:
            record = record_of(file)
        except UserError:  # it counts as damaged when it is loaded
            continue
        if not found and "weights" not in record:
            return {}
        found.append({name: record.get(name) for name in _OF_MODEL})
    if not found:
        return {}
    first, *others = found
    alike = {name: all(other[name] == first[name] for other in others) for name in first}
    made = {name: first[name] if alike[name] else SEVERAL for name in first}
    return {name: value for name, value in made.items() if value is not None}


@dataclass(frozen=True)
class OwnWeights:
    """The weights that numbers may be of: what was loaded of a run's checkpoint.

    Args:
        known_hash: SHA-256 of the checkpoint's file.
        choice: `--weights` and `--parts`.
        model: what was loaded, in float32, and `config`, its section; without them nothing is said
            of samples in folders.
    """

    known_hash: str
    choice: WeightChoice
    model: nn.Module | None = None
    config: Mapping[str, Any] | None = None

    @cached_property
    def _hashes(self) -> dict[torch.dtype | None, dict[str, str]]:
        return {}

    def are_of(self, about: Mapping[str, Any]) -> bool:
        """Whether `about`, of `describe_checkpoint`, names these weights of this file.

        Descriptions of before `--weights` was recorded count as those of its default.
        """
        own, other = self.choice.describe(), about.get("weights")
        usual = (None, EMA)  # without the flag, the moving average is taken; it wants one there
        alike = other == own["weights"] or {other, own["weights"]} == set(usual)
        return about[HASH] == self.known_hash and alike and about.get("parts") == own.get("parts")

    def made(self, record: Mapping[str, Any]) -> bool:
        """Whether these weights made images of that record, or of that `made_with`."""
        if self.model is None:
            return False
        dtype = _DTYPES.get(str(record.get("dtype")))
        if dtype not in self._hashes:
            self._hashes[dtype] = model_hashes(self.model, self.config, dtype)
        return all(record.get(name) == own for name, own in self._hashes[dtype].items())

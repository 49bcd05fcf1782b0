"""Which weights numbers are of: how results say it, and whether two of them say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taming.checkpoint import Run
from taming.downloads import file_hash
from taming.weight_choice import EMA, WeightChoice, weight_choice

HASH = "checkpoint_hash"


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


def is_of(about: Mapping[str, Any], known_hash: str, choice: WeightChoice) -> bool:
    """Whether `about`, of `describe_checkpoint`, names these weights of this file.

    Descriptions of before `--weights` was recorded count as those of its default.
    """
    own, other = choice.describe(), about.get("weights")
    usual = (None, EMA)  # without the flag, the moving average is taken; the flag wants one there
    alike = other == own["weights"] or {other, own["weights"]} == set(usual)
    return about[HASH] == known_hash and alike and about.get("parts") == own.get("parts")

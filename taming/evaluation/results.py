"""Numbers that say how they were made: one JSON file, and a Markdown table beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Result = dict[str, Any]


def make_result(
    metrics: Mapping[str, Any],
    protocol: Mapping[str, Any],
    sets: Mapping[str, Mapping[str, Any]],
    seconds: float,
    device: torch.device,
    command: Sequence[str],
) -> Result:
    """metrics, protocol, one entry per set ("samples", "reference" ...), versions, hardware, ...

    Args:
        command: `[script, *arguments]` as they were given.
    """
    raise NotImplementedError


def write_result(result: Result, path: Path, tables: Sequence[str] = ()) -> Path:
    """Write `path` (.json) and its Markdown (.md), `tables` at the end of it; returns `path`."""
    raise NotImplementedError


def read_result(path: str | Path) -> Result:
    """Raises UserError where it is none."""
    raise NotImplementedError


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Columns of numbers are aligned to the right."""
    raise NotImplementedError


def differences(old: Result, new: Result, tolerance: float) -> list[str]:
    """What differs, a phrase each: numbers by more than `tolerance` (relative), then their causes."""
    raise NotImplementedError

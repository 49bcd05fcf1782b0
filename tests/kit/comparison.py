"""What differs between two runs, in one line each: weights, optimizers, tables, files."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taming.checkpoint import read_checkpoint
from taming.errors import UserError

# Parts of a checkpoint that must be the same; paths, times and versions may differ.
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
FOLDERS = ("checkpoints", "images")


def only_run(folder: Path) -> Path | None:
    """The one run under `folder`/logs, None before it has one."""
    runs = [path for path in folder.glob("logs/*") if path.is_dir()]
    if len(runs) > 1:
        raise AssertionError(f"{len(runs)} runs where there should be one: {runs}")
    return runs[0] if runs else None


def differences(first: Path, second: Path) -> list[str]:
    """What differs in `second`, a run that was stopped and resumed, from `first`, which was not."""
    return [
        *_checkpoint_differences(first / "checkpoints", second / "checkpoints"),
        *_file_differences(first, second),
        *_table_differences(first, second),
        *leftovers(second),
    ]


def leftovers(run: Path) -> list[str]:
    """Temporary files that nobody will ever finish."""
    return [f"left behind: {path.relative_to(run)}" for path in sorted(run.rglob("*.partial*"))]


# ---------------------------------------------------------------------- checkpoints


def _checkpoint_differences(first: Path, second: Path) -> Iterator[str]:
    for path in sorted(first.glob("*.ckpt")):
        other = second / path.name
        if not other.is_file():
            continue  # is told by the comparison of files
        try:
            wanted, found = contents(path), contents(other)
        except UserError as error:
            yield f"{path.name}: {error}"
            continue
        unequal = [name for name in wanted.keys() | found.keys() if not _same(wanted, found, name)]
        if unequal:
            yield f"{path.name}: {_summary(wanted, found, sorted(unequal))}"


def contents(path: Path) -> dict[str, Any]:
    """The compared parts of a checkpoint, by the path of each value inside it."""
    checkpoint = read_checkpoint(path)
    return dict(_leaves({key: checkpoint.get(key) for key in COMPARED}, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            yield from _leaves(entry, f"{path}[{number}]")
    elif isinstance(value, Tensor | int | float | str | bool | None):
        yield path, value


def _same(first: dict[str, Any], second: dict[str, Any], name: str) -> bool:
    if name not in first or name not in second:
        return False
    one, two = first[name], second[name]
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.dtype == two.dtype and torch.equal(_bits(one), _bits(two))
    return type(one) is type(two) and repr(one) == repr(two)


def _bits(tensor: Tensor) -> Tensor:
    """The bytes, so that zeros have a sign and what is no number equals itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _summary(first: dict[str, Any], second: dict[str, Any], names: list[str]) -> str:
    sizes = [
        (first[name].float() - second[name].float()).abs().max().item()
        for name in names
        if isinstance(first.get(name), Tensor)
        and isinstance(second.get(name), Tensor)
        and first[name].shape == second[name].shape
        and first[name].numel()
    ]
    far = f", by up to {max(sizes):.2g}" if sizes else ""
    plain = [n for n in names if not isinstance(first.get(n, second.get(n)), Tensor)]
    shown = "; ".join(f"{n} {first.get(n)} is {second.get(n)}" for n in plain[:3])
    return f"{len(names)} of {len(first)} values differ{far}{'; ' + shown if shown else ''}"


# ---------------------------------------------------------------------- files


def _file_differences(first: Path, second: Path) -> Iterator[str]:
    for folder in FOLDERS:
        wanted, found = _files(first / folder), _files(second / folder)
        if missing := sorted(wanted.keys() - found.keys()):
            yield f"{folder}: {len(missing)} missing, such as {missing[0]}"
        if more := sorted(found.keys() - wanted.keys()):
            yield f"{folder}: {len(more)} too many, such as {more[0]}"
        pictures = [name for name in wanted.keys() & found.keys() if name.endswith(".png")]
        unequal = sorted(n for n in pictures if wanted[n].read_bytes() != found[n].read_bytes())
        if unequal:
            yield f"{folder}: {len(unequal)} of {len(pictures)} images differ, first {unequal[0]}"


def _files(folder: Path) -> dict[str, Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and ".partial" not in path.name]
    return {str(path.relative_to(folder)): path for path in files}


# ---------------------------------------------------------------------- tables

Cells = dict[tuple[str, int], list[str]]


def logged_values(run: Path) -> Cells:
    """All logged values of a run, over all its starts: (column, step) -> what stands there.

    Rows that a later start has cut away are in files of another name than metrics.csv.
    """
    cells: Cells = defaultdict(list)
    for path in sorted(run.glob("csv/**/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for column, text in row.items():
                    if column not in ("step", None) and text:
                        cells[column, int(row["step"])].append(text)
    return cells


def _table_differences(first: Path, second: Path) -> Iterator[str]:
    wanted, found = logged_values(first), logged_values(second)
    groups = {
        "missing": sorted(wanted.keys() - found.keys(), key=_by_step),
        "not in the uninterrupted run": sorted(found.keys() - wanted.keys(), key=_by_step),
        "logged more than once": sorted(
            (k for k in wanted.keys() & found.keys() if len(found[k]) > len(wanted[k])),
            key=_by_step,
        ),
        "different": sorted(
            (k for k in wanted.keys() & found.keys() if wanted[k][-1] != found[k][-1]), key=_by_step
        ),
    }
    for what, keys in groups.items():
        if keys:
            first_one = "{} of step {}".format(*keys[0])
            yield f"table: {len(keys)} of {len(wanted)} values {what}, first {first_one}"


def _by_step(key: tuple[str, int]) -> tuple[int, str]:
    return key[1], key[0]

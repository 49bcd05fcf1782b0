"""The tables of logged values, csv/<start>/metrics.csv, over all starts of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from taming.atomic_files import write_text

TABLE = "metrics.csv"


def free_version(folder: Path, name: str) -> str:
    """`name`, or with a number if a start of the run has taken it already."""
    names = [name, *(f"{name}_{number}" for number in range(2, 1000))]
    return next(name for name in names if not (folder / name).exists())


def count_rows(folder: Path) -> dict[str, int]:
    """Rows of each start's table below `folder`, by the name of the start."""
    return {path.parent.name: len(_read(path).rows) for path in folder.glob(f"*/{TABLE}")}


def read_values(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of all that the starts of a run logged below `folder`, by name, by step."""
    values: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob(f"*/{TABLE}")):
        for row in _read(path).rows:
            step = int(row["step"])
            for name in row.keys() - {"step", "epoch"}:
                if row[name]:
                    values.setdefault(name, []).append((step, float(row[name])))
    return {name: sorted(points) for name, points in sorted(values.items())}


def cut_rows(folder: Path, kept: Mapping[str, int] | None, next_row: int, label: str) -> None:
    """Cut rows that were logged after the checkpoint that a run goes on from.

    They are kept in `cut_<label>.csv` beside the table, as their steps are logged again.

    Args:
        kept: rows of each start that the checkpoint knows of; of other starts all rows are cut.
            None is a checkpoint that does not know: then the numbers of the steps alone decide.
        next_row: the number of the step that is logged next.
    """
    for path in sorted(folder.glob(f"*/{TABLE}")):
        table = _read(path)
        known = len(table.rows) if kept is None else kept.get(path.parent.name, 0)
        count = min(known, len(table.rows))  # the system may have lost the end of the table
        # A step that had begun may have logged, for example, its learning rate.
        while count and int(table.rows[count - 1]["step"]) >= next_row:
            count -= 1
        if count < len(table.rows):
            cut = replace(table, rows=table.rows[count:])
            _write(path.with_name(f"cut_{label}.csv"), cut)
        if count < len(table.rows) or table.damaged:
            _write(path, replace(table, rows=table.rows[:count]))


@dataclass(frozen=True)
class _Table:
    columns: Sequence[str]
    rows: Sequence[Mapping[str, str]]
    damaged: bool = False  # a kill or a power cut has left part of a row, or other bytes


def _read(path: Path) -> _Table:
    content = path.read_bytes()
    text = content.decode(errors="replace").replace("\0", "")
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    rows = list(reader)
    whole = [row for row in rows if (row.get("step") or "").isdecimal()]
    damaged = len(whole) < len(rows) or not content.endswith(b"\n") or text.encode() != content
    return _Table(reader.fieldnames or (), whole, damaged)


def _write(path: Path, table: _Table) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, table.columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(table.rows)
    write_text(path, text.getvalue())

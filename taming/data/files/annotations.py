"""Annotation files, JSON and CSV, read with sentences for what is wrong with them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from taming.errors import UserError, reason_of
from taming.user_files import read_text, regular

# What fields of images and categories hold. Of objects, "skip" leaves out those that do not.
TYPES: dict[str, tuple[Any, str]] = {
    "file_name": (str, "text"),
    "name": (str, "text"),
    "supercategory": (str, "text"),
    "caption": (str, "text"),
    "width": (int | float, "number"),
    "height": (int | float, "number"),
}
IDS: dict[str, tuple[Any, str]] = {"id": (int | str | float, "number or text")}


def read_json(
    file: str | Path, keys: Sequence[str], dataset: str, unused: Sequence[str] = ()
) -> dict[str, Any]:
    """A JSON object with at least `keys`.

    The entries `unused` of any object in it are dropped as soon as they are read: outlines of
    objects take gigabytes.

    Raises:
        UserError: if the file is absent or damaged, or lacks one of `keys`.
    """
    name = Path(file).name
    try:
        with tqdm(desc=f"reading {name}", unit=" entries", delay=2, disable=None) as bar:

            def without_unused(entry: dict[str, Any]) -> dict[str, Any]:
                for key in unused:
                    entry.pop(key, None)
                bar.update()
                return entry

            content = json.loads(read_text(file), object_hook=without_unused)
    except OSError as error:
        raise UserError(
            f"{dataset}: {file} cannot be read ({reason_of(error)}); put it there"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{dataset}: {file} is no valid JSON ({error}), perhaps cut short; get it anew"
        ) from None
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{dataset}: {file} has no {missing[0]!r}; is it another file?")
    return content


def all_fields(
    records: Sequence[Any], names: Sequence[str], file: str | Path, kind: str
) -> list[tuple[Any, ...]]:
    """The values of `names` in each of a JSON file's records, which are entries of `kind`.

    Raises:
        UserError: naming the first record that lacks one of them, or has one of another type.
    """
    if not isinstance(records, list):
        raise UserError(f"{file}: {kind} must be a list; repair or replace the file")
    rows = _picked(records, names, file, kind)
    types = TYPES if kind == "annotations" else TYPES | IDS
    for place, name in enumerate(names):
        accepted, expected = types.get(name, (object, ""))
        wrong = (n for n, row in enumerate(rows) if not _is_of(row[place], accepted))
        if (number := next(wrong, None)) is not None:
            raise UserError(
                f"{file}: the {name!r} of entry {number} of {kind} is no {expected}; repair or "
                "replace the file"
            )
    return rows


def _is_of(value: Any, accepted: Any) -> bool:
    """Whether a value is of a type; a number must be finite, and not beyond what arrays hold."""
    if not isinstance(value, accepted):
        return False
    return accepted != int | float or abs(value) < 2**31  # false of NaN


def identity_of(value: Any) -> int | float | str:
    """An id, as text if it is a list or the like, which cannot be looked up."""
    return whole(value) if isinstance(value, int | float | str) else repr(value)


def whole(value: Any) -> Any:
    """A value; 5 of 5.0, as some programs write all numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _picked(
    records: Sequence[Any], names: Sequence[str], file: str | Path, kind: str
) -> list[tuple[Any, ...]]:
    pick = itemgetter(*names)  # the fastest way, for millions of records
    try:
        return [pick(record) for record in records]
    except (KeyError, TypeError, IndexError):
        for number, record in enumerate(records):
            for name in names:
                if not isinstance(record, dict) or name not in record:
                    place = f"entry {number} of {kind}"
                    raise UserError(
                        f"{file}: {place} has no {name!r}; repair or replace the file"
                    ) from None
        raise


def read_csv(
    file: str | Path, columns: Sequence[str], dataset: str, header: bool = True
) -> Iterator[tuple[int, Sequence[str]]]:
    """(line number, values of `columns`) of each row.

    Args:
        columns: names in the file's first line; without a `header`, of its first columns.
        dataset: its name, for error messages.

    Raises:
        UserError: if the file is absent or damaged, a column is missing, or a row is too short.
    """
    try:
        with open(regular(Path(file)), newline="", encoding="utf-8-sig") as text:
            rows = csv.reader(text)
            head = next(rows, []) if header else columns
            pick = _picker(head, columns, file, dataset)
            for row in rows:
                if row:
                    yield rows.line_num, pick(row)
    except IndexError:
        raise UserError(
            f"line {rows.line_num} of {file} has only {len(row)} columns; repair the file"
        ) from None
    except OSError as error:
        raise UserError(
            f"{dataset}: {file} cannot be read ({reason_of(error)}); put it there"
        ) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{dataset}: {file} is no valid CSV ({error}); get it anew") from None


def _picker(
    head: Sequence[str], columns: Sequence[str], file: str | Path, dataset: str
) -> Callable[[Sequence[str]], Sequence[str]]:
    missing = [column for column in columns if column not in head]
    if missing:
        raise UserError(
            f"{dataset}: line 1 of {file} lacks the column {missing[0]!r}; it needs "
            f"{', '.join(columns)}"
        )
    places = [head.index(column) for column in columns]
    # The fastest way for millions of rows, but for one column it gives no tuple.
    return itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)

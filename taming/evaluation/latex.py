"""Tables for papers: LaTeX with booktabs, and arrows in the heads that point to the better end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UP, DOWN = "up", "down"
ARROWS = {UP: r" $\uparrow$", DOWN: r" $\downarrow$"}
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


def latex_table(rows: Sequence[Mapping[str, Any]], better: Mapping[str, str] | None = None) -> str:
    """A `tabular` of `rows`, with the first one's keys as columns; needs the package booktabs.

    `better` says of columns whether larger values are better (`UP`) or smaller ones (`DOWN`).
    Columns of numbers are on the right; "-" becomes a dash.
    """
    names = list(rows[0]) if rows else []
    ends = better or {}
    heads = [escaped(name) + ARROWS.get(ends.get(name, ""), "") for name in names]
    columns = "".join("r" if _of_numbers(rows, name) else "l" for name in names)
    lines = [" & ".join(_cell(row.get(name, "")) for name in names) for row in rows]
    body = [f"{line} \\\\" for line in (" & ".join(heads), *lines)]
    head = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", body[0], "\\midrule"]
    return "\n".join([*head, *body[1:], "\\bottomrule", "\\end{tabular}", ""])


def escaped(text: str) -> str:
    """Text in which LaTeX finds no commands."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "--" if text == "-" else escaped(text)


def _of_numbers(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return all(_is_number(str(row.get(name, "-"))) for row in rows)


def _is_number(text: str) -> bool:
    try:
        float(text.removesuffix("%").replace(",", ""))
    except ValueError:
        return text == "-"
    return True

"""All presets as Markdown, for people: what `scripts/reproduce.py --list` and the docs show."""

from __future__ import annotations

from taming.evaluation.presets import TABLES, command_of
from taming.evaluation.presets.base import Preset
from taming.shipped import runnable

METRICS = {
    "fid": "FID",
    "rfid": "rFID",
    "scene_fid": "SceneFID",
    "isc.mean": "IS",
    "nats_per_token": "NLL",
}


def published_text(entry: Preset) -> str:
    """The numbers of a preset, and of what else they are, or who measured them."""
    parts, named = [], [number.metric for number in entry.measured]
    for number in entry.numbers:
        metric = METRICS.get(number.metric, number.metric)
        whose = number.of or (f"by {number.by}" if number.by else "")
        if named.count(number.metric) > 1:
            whose = whose or number.source
        parts.append(f"{metric} {number.text}{f' ({whose})' if whose else ''}")
    return ", ".join(parts) or "none"


def rows(presets: tuple[Preset, ...]) -> list[dict[str, str]]:
    """A line per preset: numbers, name, of what, command or why there is none."""
    lines = []
    for entry in presets:
        words = command_of(entry)
        command = f"`{' '.join(runnable(words))}`" if words else entry.note
        published = published_text(entry)
        what = f"{entry.what}{'; ' + entry.note if words and entry.note else ''}"
        lines.append({"published": published, "preset": entry.name, "of": what, "command": command})
    return lines


def listing() -> str:
    """A table of the presets for every table of the papers."""
    return "\n\n".join(
        f"**{title}**\n\n{_narrow(rows(presets))}" for title, presets in TABLES.items()
    )


def _narrow(lines: list[dict[str, str]]) -> str:
    """A Markdown table whose columns are not aligned, as commands are long."""
    head = list(lines[0])
    cells = [head, ["---"] * len(head), *(list(line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)

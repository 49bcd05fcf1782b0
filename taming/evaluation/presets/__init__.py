"""Published numbers and their protocols, by name; `scripts/reproduce.py --list` shows all of them.

Sources: "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841v3), the README
of its code, and, for scenes, "High-Resolution Complex Scene Synthesis with Transformers" (arXiv
2105.06458). Every parameter names its place there.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from taming.command_line import Parser
from taming.config import did_you_mean
from taming.distributed import is_first_process
from taming.errors import UserError
from taming.evaluation.presets.base import NOT_PUBLISHED, Number, Parameter, Preset
from taming.evaluation.presets.image_rows import (
    LATENT_DIFFUSION,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_5,
)
from taming.evaluation.presets.other_rows import BY_OTHERS, COSTS, PICTURED, SCENES, TABLE_1
from taming.evaluation.results import markdown_table
from taming.published_models import published_models
from taming.shipped import script as called

__all__ = [
    "NOT_PUBLISHED",
    "PRESETS",
    "PRESET_HELP",
    "TABLES",
    "Number",
    "Parameter",
    "Preset",
    "command_of",
    "noted",
    "preset",
    "preset_words",
    "sources_text",
    "to_json",
    "with_preset",
]

TABLES: dict[str, tuple[Preset, ...]] = {
    "Table 1, likelihood": TABLE_1,
    "Table 2, segmentations": TABLE_2,
    "Table 3, faces": TABLE_3,
    "Table 4, classes of ImageNet": TABLE_4,
    "Table 5, reconstructions": TABLE_5,
    "First stages of latent diffusion": LATENT_DIFFUSION,
    "Section 4.3 and figure 7, cost": COSTS,
    "Scenes": SCENES,
    "Measured by others": BY_OTHERS,
    "Shown without a number": PICTURED,
}
PRESETS = {preset.name: preset for presets in TABLES.values() for preset in presets}
# Earlier names.
RENAMED = {
    "cin_1": "cin_k250",
    "cin_2": "cin_k973_p088",
    "cin_3": "cin_mixed_k_a0005",
    "cin_4": "cin_mixed_k_a005",
    "cin_5": "cin_k600_a005",
    "rfid_gumbel": "rfid_gumbel_f8",
}
PRESET_HELP = (
    f"the protocol of a published number, with its sources: see {called('reproduce')} --list"
)
RUN = "RUN"  # stands for the run of a model that is not published


def preset(name: str) -> Preset:
    """The preset of that name; UserError if there is none."""
    name = RENAMED.get(name, name)
    if name not in PRESETS:
        raise UserError(f"there is no preset '{name}'{did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def preset_words(entry: Preset, parser: Parser, script: str) -> list[str]:
    """The flags of the script of that name that a preset sets, for the beginning of its command
    line.

    Raises UserError for a preset that another script computes, or none.
    """
    if entry.script is None:
        raise UserError(f"the preset {entry.name}, {entry.what}, is no single run: {entry.note}")
    if entry.script != script:
        raise UserError(f"the preset {entry.name} is computed by {called(entry.script)}")
    known = parser.flags()
    return [
        word
        for parameter in entry.parameters
        if parameter.value is not None and f"--{parameter.name}" in known
        for word in (f"--{parameter.name}", parameter.text)
    ]


def with_preset(parser: Parser, argv: Sequence[str] | None, script: str) -> list[str]:
    """`argv` behind the flags that its `--preset` sets, so that its own count; prints the sources.

    Raises UserError for an unknown preset, and one of another script.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = _named(words)
    if name is None:
        return words
    entry = preset(name)
    flags = preset_words(entry, parser, script)
    given, _ = parser.parse_known_args([*flags, *words])
    if is_first_process():
        print(sources_text(entry, vars(given)))
    return [*flags, *words]


def _named(words: Sequence[str]) -> str | None:
    """What follows `--preset`, before anything is parsed, as that decides other flags' values."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--preset":
            following = next(iter(words[place + 1 :]), "-")
            return value if equals else (None if following.startswith("-") else following)
    return None


def sources_text(entry: Preset, given: Mapping[str, Any] | None = None) -> str:
    """What is published of a preset and where, a line each, and the flags `given` instead."""
    rows = entry.describe(given)
    width = max(len(row["name"]) for row in rows) if rows else 0
    lines = [
        f"{row['name']:{width}}  {row['value']} ({row['source']})"
        + (f"; given: {own}" if (own := row.get("given")) else "")
        for row in rows
    ]
    return "\n".join([f"{entry.name}: {entry.what}", *lines, *([entry.note] if entry.note else [])])


def command_of(entry: Preset, run: str | None = None) -> list[str]:
    """The line that measures a preset, see `taming.shipped.script_of`; `run` is the model's, by
    default its folder.

    Empty for presets that no script measures.
    """
    if entry.script is None:
        return []
    run = run or (published_models()[entry.model].folder if entry.model else RUN)
    config = f"configs/{entry.config}.yaml" if entry.config else None
    words = shlex.split(called(entry.script))
    if entry.script != "evaluate_fid":
        return [*words, "-r", run, *(["--data", config] if config else []), "--preset", entry.name]
    assert config is not None
    samples = config if entry.of_data_alone else run
    words += [samples, config, "--preset", entry.name]
    return [*words, "-b", config] if entry.conditions else words


def noted(result: dict[str, Any], name: str | None, given: Mapping[str, Any]) -> list[str]:
    """Note a preset in a result; returns what its Markdown ends with: a table of the sources.

    Of the script's parsed flags `given`, those that count in place of published values are named.
    """
    if name is None:
        return []
    entry = preset(name)
    changed = entry.overridden(given)
    result["preset"] = to_json(entry) | ({"overridden": changed} if changed else {})
    table = markdown_table(entry.describe(given))
    if not changed:
        return [table]
    names = ", ".join(f"{key} {value}" for key, value in changed.items())
    return [f"Not as published: {names}.", table]


def to_json(entry: Preset) -> dict[str, Any]:
    """A preset as JSON values."""
    return {"name": entry.name, "what": entry.what, "sources": entry.describe()}

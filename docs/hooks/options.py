"""Tables of options, made of the commands' own parsers while the site is built.

A line `<!-- options: sample -->` of a page becomes the table of `taming sample`, and
`<!-- options: figures cost -->` that of the figure `cost`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from taming import program
from taming.command_line import Parser, parser_of
from taming.demo.arguments import read_page_arguments

MARK = re.compile(r"^<!-- options: ([\w -]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with tables in place of marks."""
    return MARK.sub(lambda match: options_of(*match[1].split()), markdown)


def options_of(name: str, *words: str) -> str:
    """The table of a command's options, as Markdown."""
    Parser.program = f"taming {name}"
    parser = parser_of(main_of(name), *words)
    Parser.program = None
    if parser is None:
        raise LookupError(f"taming {name} has no parser")
    return "\n\n".join(filter(None, map(group_table, parser._action_groups)))


def main_of(name: str) -> Any:
    """The function behind a command."""
    if name in program.OWN:
        return getattr(program, name)
    if name == "demo":  # Streamlit runs its script when it is imported
        return read_page_arguments
    path = ROOT / "scripts" / f"{program.SCRIPTS[name]}.py"
    return program.load(path).main


def group_table(group: argparse._ArgumentGroup) -> str:
    """One group of options; empty if it has none that are shown."""
    actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
    actions = [a for a in actions if not isinstance(a, argparse._HelpAction)]
    if not actions:
        return ""
    rows = [f"| {names_of(action)} | {help_of(action)} |" for action in actions]
    title = group.title or ""
    heading = (
        "" if title in ("options", "positional arguments") else f"**{title.capitalize()}**\n\n"
    )
    first = "argument" if title == "positional arguments" else "option"
    return f"{heading}| {first} | what it does |\n|---|---|\n" + "\n".join(rows)


def names_of(action: argparse.Action) -> str:
    """Its spellings, with what stands for its value."""
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if action.choices is not None:
        value = "|".join(map(str, action.choices))
    text = value if isinstance(value, str) else " ".join(value)
    if action.option_strings:
        takes = f" {text}" if action.nargs != 0 else ""
        text = ", ".join(sorted(action.option_strings, key=len)) + takes
    return "`" + text.replace("|", r"\|") + "`"


def help_of(action: argparse.Action) -> str:
    """What `--help` says, in a cell of a table."""
    text = (action.help or "") % {**vars(action), "prog": "taming"}
    needed = action.option_strings and action.required and "(required)" not in text
    required = " (required)" if needed else ""
    escaped = re.sub(r"([|<>*_`\[\]])", r"\\\1", " ".join(text.split()))
    return escaped + required

"""The command `taming`: `main.py` and every script, as `taming train`, `taming sample` and so on.

Nothing but the script that is asked for is imported.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import taming
from taming.atomic_files import check_place
from taming.command_line import Extend, Parser
from taming.completion_script import (
    CONFIG_FLAGS,
    MODEL_FLAGS,
    SHELLS,
    choices_of,
    completion_script,
    values_behind,
    words_of,
)
from taming.errors import UserError, command
from taming.imports import many_imports
from taming.published_models import published_models
from taming.shipped import SCRIPTS, TRAIN, config_names, extra, find_config, shipped

CONFIGS, COMPLETION = "configs", "completion"
OWN = {
    TRAIN: "Train a first stage or a transformer, as main.py does.",
    CONFIGS: "List the shipped configs, or copy some to change them.",
    COMPLETION: "Print what lets a shell complete commands, flags and configs.",
}
# Options of Streamlit for the demo, as in .streamlit/config.toml: it is served to this machine
# alone, nothing is reported, asked for or offered, and files of code, which nobody changes, are not
# watched.
DEMO = {
    "server.address": "localhost",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": "20",
    "server.showEmailPrompt": "false",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "viewer",
}
_STREAMLITS = re.compile(r"--[A-Za-z]+\.[A-Za-z]")  # its flags have a section, ours have none


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run `taming` with `argv` (default: the command line)."""
    words = list(sys.argv[1:] if argv is None else argv)
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(f"taming {taming.__version__}")
    elif name in OWN:
        Parser.program = f"taming {name}"
        {TRAIN: train, CONFIGS: configs, COMPLETION: completion}[name](rest)
    elif name in SCRIPTS:
        Parser.program = f"taming {name}"
        run_script(name, rest)
    else:
        close = difflib.get_close_matches(name, [*OWN, *SCRIPTS], n=1)
        hint = f"; did you mean {close[0]}?" if close else " (see taming --help)"
        raise UserError(f"there is no command {name}{hint}")


def summary(path: Path) -> str:
    """The first sentence of a script's docstring, without importing it."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def overview() -> str:
    """What `taming --help` says."""
    commands = dict(OWN)
    for name, script in SCRIPTS.items():
        commands[name] = summary(shipped("scripts") / f"{script}.py")
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {text}" for name, text in commands.items()]
    first = "usage: taming COMMAND [arguments]     (taming COMMAND --help says which)"
    return "\n".join([first, "", *lines])


def train(argv: Sequence[str]) -> None:
    """What main.py does."""
    with many_imports(of_command=True):
        from taming.training.cli import main

    main(argv)


def run_script(name: str, argv: Sequence[str]) -> None:
    """Run a script in this process, or the demo's page in its place."""
    path = shipped("scripts") / f"{SCRIPTS[name]}.py"
    if name != "demo":
        return load(path).main(argv)
    if {"-h", "--help"} & set(argv):
        return print_help_of_demo()
    if importlib.util.find_spec("streamlit") is None:
        raise UserError(f"the demo needs Streamlit: {extra('demo')}")
    become([sys.executable, *demo_words(path, argv)])


def become(line: Sequence[str]) -> NoReturn:
    """Run a program in the place of this process; on Windows, whose `exec` takes a path with a
    space for two words and does not wait, below it, and then end with its code."""
    if sys.platform == "win32":
        raise SystemExit(subprocess.run(line, check=False).returncode)
    os.execv(line[0], list(line))


def print_help_of_demo() -> None:
    """Streamlit, which would start with warnings, is not needed for it."""
    from taming.demo.arguments import read_page_arguments

    read_page_arguments(["--help"])


def demo_words(path: Path, argv: Sequence[str]) -> list[str]:
    """Python's arguments for the demo: Streamlit serves it with `DEMO`, unless one of its own
    flags, `--server.address=0.0.0.0`, says otherwise.

    Raises:
        UserError: for a flag of Streamlit's without its value.
    """
    own, rest = streamlits_flags(argv)
    said = {word[2:].partition("=")[0] for word in own}
    ours = [f"--{name}={value}" for name, value in DEMO.items() if name not in said]
    return ["-m", "taming.demo", "run", str(path), *ours, *own, "--", *rest]


def streamlits_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Streamlit's flags, each with its value as one word, and all other words, but for the first
    `--`, which stands between both in a line of `streamlit run`.

    A flag that has lost its value would take the next one for it, which may be what keeps the page
    on this machine.
    """
    own, rest, words, divided = [], [], iter(argv), False
    for word in words:
        if word == "--" and not divided:
            divided = True
        elif not _STREAMLITS.match(word):
            rest.append(word)
        elif "=" in word:
            own.append(word)
        elif (value := next(words, "-")).startswith("-"):
            raise UserError(f"{word} takes a value; write {word}=VALUE")
        else:
            own.append(f"{word}={value}")
    return own, rest


def load(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up there
    with many_imports(of_command=True):
        spec.loader.exec_module(module)
    return module


def configs(argv: Sequence[str]) -> None:
    """Print the names of the shipped configs, or copy some; UserError for one that is not there."""
    parser = Parser(description=OWN[CONFIGS])
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument(
        "--copy", nargs="+", action=Extend, default=[], metavar="NAME", help="copy these"
    )
    parser.add_argument(
        "--outdir", "-o", type=Path, default=Path(), help="where to (default: here)"
    )
    args = parser.parse_args(argv)
    if args.list or not args.copy:
        print("\n".join(config_names()))
    targets = dict[Path, str]()
    for name in args.copy:
        target = args.outdir / find_config(name).name
        if target.exists():
            raise UserError(f"{target} exists; delete it, or give another --outdir")
        if (other := targets.setdefault(target, name)) != name:
            raise UserError(f"{other} and {name} would both be {target}; copy one elsewhere")
    for target, name in targets.items():
        check_place(args.outdir, "give another --outdir")
        args.outdir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(find_config(name), target)
        print(f"{name} is in {target}")


def completion(argv: Sequence[str]) -> None:
    """Print the completion script of a shell."""
    parser = Parser(
        description=OWN[COMPLETION],
        epilog="taming completion bash > FILE, and `source FILE` in ~/.bashrc",
    )
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(argv).shell
    modules = {  # of all scripts, whose imports take seconds
        name: load(shipped("scripts") / f"{script}.py")
        for name, script in SCRIPTS.items()
        if name != "demo"  # Streamlit's script runs when it is imported
    }
    from taming.demo.arguments import read_page_arguments

    mains = {name: globals()[name] for name in OWN}
    mains |= {name: module.main for name, module in modules.items()} | {"demo": read_page_arguments}
    words = {name: words_of(main) for name, main in mains.items()}
    published = sorted(published_models())
    words["download"] = sorted({*words["download"], *published})
    # Training goes on with runs alone.
    of_models = [f"{n} {f}" for n in words for f in MODEL_FLAGS if f in words[n] and n != TRAIN]
    chosen = {f"{n} {f}": own for n, main in mains.items() for f, own in choices_of(main).items()}
    values: dict[str, list[str]] = {
        **dict.fromkeys(CONFIG_FLAGS, config_names()),
        **chosen,
        **dict.fromkeys(of_models, published),
        "gallery --only": list(modules["gallery"].PICTURES),
    }
    takes = {name: values_behind(main) for name, main in mains.items()}
    print(completion_script(shell, words, values, of_models, takes=takes))

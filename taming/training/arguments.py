"""The arguments of main.py: flags, options of the Trainer, and overrides of the configs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taming.command_line import (
    Extend,
    Parser,
    add_trust_flag,
    add_weight_flags,
    is_override,
    parse_switch,
)
from taming.training.refused_options import refuse_former
from taming.training.trainer_options import parse_option, trainer_options

SWITCHES = ("-t", "--train", "--no-test", "-d", "--debug", "--scale_lr")


def get_parser(**options: Any) -> Parser:
    """The flags of main.py; `split_arguments` reads the Trainer's arguments and the overrides.

    `options` are argparse's, such as `description`.
    """
    texts = {
        "prog": Parser.program or "main.py",
        "description": "Train a first stage or a transformer from YAML configs.",
        "epilog": "Further arguments: --key value for any argument of the Lightning Trainer, "
        "--gpus 0, | 0,1 | 2, and key.path=value to override the configs.",
    }
    parser = Parser(**{**texts, "allow_abbrev": False, **options})
    switch: dict[str, Any] = {"type": parse_switch, "nargs": "?", "const": True}
    parser.add_argument("-n", "--name", help="name of the run; default: that of the first config")
    parser.add_argument("-r", "--resume", help="go on with a run: its folder or a checkpoint of it")
    parser.add_argument(
        "-b",
        "--base",
        nargs="*",
        action=Extend,
        default=[],
        metavar="config.yaml",
        help="configs, merged from left to right",
    )
    parser.add_argument("-t", "--train", default=False, help="train", **switch)
    parser.add_argument("--no-test", default=False, help="do not test after training", **switch)
    parser.add_argument("-p", "--project", help="put the run in a folder of this name under logs/")
    parser.add_argument(
        "-d", "--debug", default=False, help="move the run to logs/debug_runs/ at its end", **switch
    )
    parser.add_argument(
        "-s", "--seed", type=int, help="seed of all random numbers; default: 23, or the run's"
    )
    parser.add_argument("-f", "--postfix", default="", help="appended to the run's name")
    parser.add_argument(
        "--scale_lr",
        **switch,
        help="multiply the base learning rate by devices, batch size and accumulated batches; "
        "default: true, or as the run has it",
    )
    parser.add_argument(
        "--skip_nonfinite",
        type=int,
        metavar="N",
        help="leave out up to N batches whose loss or gradient is not finite; default: 0, or as "
        "the run has it: stop",
    )
    parser.add_argument("--gpus", help="0, for the first GPU; 0,1 for two of them; 2 for any two")
    add_trust_flag(parser)
    add_weight_flags(parser)
    return parser


def _with_values(words: Sequence[str]) -> list[str]:
    """`-t key=value` as `-t true key=value`: an override is no switch's value."""
    completed: list[str] = []
    for word, following in zip(words, [*words[1:], ""], strict=False):
        completed += [word, "true"] if word in SWITCHES and is_override(following) else [word]
    return completed


def split_arguments(rest: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """`--key value` options of the Trainer and `key.path=value` overrides, of the other arguments.

    Raises:
        UserError: for an option that the Trainer does not have.
    """
    options: dict[str, Any] = {}
    overrides: list[str] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flag, equals, value = word.partition("=")
        name = flag.lstrip("-")
        if not flag.startswith("--") or name not in trainer_options():
            refuse_former(name, flag)
            get_parser().refuse(flag, [f"--{option}" for option in trainer_options()])
        if not equals:
            bare = not words or words[0].startswith("--") or "=" in words[0]
            value = "true" if bare else words.pop(0)
        options[name] = parse_option(name, value)
    return options, overrides


def parse_arguments(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, dict[str, Any], list[str]]:
    """The flags of main.py, the Trainer's options, and the overrides of the configs."""
    words = sys.argv[1:] if argv is None else argv
    args, rest = get_parser().parse_known_args(_with_values(words))
    flags, overrides = split_arguments(rest)
    if args.gpus is not None:
        flags["gpus"] = args.gpus
    # `--base a.yaml key=value`: the list of files ends where overrides begin.
    overrides = [word for word in args.base if is_override(word)] + overrides
    args.base = [Path(word) for word in args.base if not is_override(word)]
    args.words = words
    return args, flags, overrides

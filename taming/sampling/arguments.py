"""Flags that the sampling scripts share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from taming.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with what every sampling script takes: the run, the output, device and seed."""
    parser = _Parser(description=description, epilog="key.path=value overrides the run's config")
    parser.add_argument("-r", "--resume", required=True, help="the run: its folder or checkpoint")
    parser.add_argument(
        "-b", "--base", nargs="*", default=[], metavar="YAML", help="merged over the run's configs"
    )
    parser.add_argument("-o", "--outdir", help="where samples go, instead of the run's folder")
    parser.add_argument("--device", default="auto", help="auto (default), cuda, cuda:1, mps, cpu")
    parser.add_argument(
        "--precision", default="fp32", help="of the transformer: fp32 (default), bf16, auto"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="with its number, decides each sample (default 0)"
    )
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the `key.path=value` overrides among the rest.

    Raises:
        UserError: for an unknown flag.
    """
    args, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if text.startswith("-") or "=" not in text]
    if unknown:
        parser.error(f"unknown argument {unknown[0]}")
    return args, rest

"""Flags that the sampling scripts share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from taming.errors import UserError
from taming.sampling.settings import SCHEDULES, SampleSettings


class Parser(argparse.ArgumentParser):
    """Wrong flags are a `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with what every sampling script takes: the run, the output, device and seed."""
    parser = Parser(description=description, epilog="key.path=value overrides the run's config")
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


def add_drawing(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, top_k: int, batch_size: int = 25
) -> None:
    """The flags that say how tokens are drawn."""
    parser.add_argument(
        "--batch_size",
        type=int,
        default=batch_size,
        help=f"drawn at once (default {batch_size})",
    )
    parser.add_argument(
        "-k", "--top_k", type=int, default=top_k, help=f"draw among the k likeliest ({top_k})"
    )
    parser.add_argument(
        "-t", "--temperature", type=float, default=1.0, help="1: as the model has it"
    )
    parser.add_argument(
        "-p", "--top_p", type=float, default=1.0, help="draw among the likeliest that make up p"
    )
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="scale, for models trained with cond_drop"
    )
    parser.add_argument(
        "--guidance_schedule", default="constant", help=f"of the scale: {', '.join(SCHEDULES)}"
    )


def add_images(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flags that say which images are drawn, and which of them are kept."""
    parser.add_argument("--classes", help="comma list of class numbers (default: all)")
    parser.add_argument("--height", type=int, help="of the images in pixels (default: as trained)")
    parser.add_argument("--width", type=int, help="of the images in pixels (default: as trained)")
    parser.add_argument(
        "--reject-ratio", type=float, default=1.0, help="keep this share, by the classifier"
    )
    parser.add_argument(
        "--classifier", help="torchvision model, as resnet101, or with own weights: resnet18:FILE"
    )


def check_drawing(args: argparse.Namespace) -> SampleSettings:
    """The settings that the flags of `add_drawing` ask for.

    Raises:
        UserError: for values out of range.
    """
    if args.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {args.batch_size}")
    return SampleSettings(
        args.temperature, args.top_k, args.top_p, args.guidance, args.guidance_schedule
    )

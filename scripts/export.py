"""Write a model for other programs.

    python scripts/export.py safetensors logs/<run> model.safetensors
    python scripts/export.py diffusers logs/<vqgan run> FOLDER
    python scripts/export.py from_diffusers FOLDER logs/<new run>
    python scripts/export.py onnx logs/<vqgan run> FOLDER --size 256,256
    python scripts/export.py llamagen logs/<run of that architecture> vq.pt

A tokenizer of another project (docs/foreign-tokenizers.md) goes back to that project's own layout.
The run may be a transformer's: all but safetensors then take its first stage.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from taming.checkpoint import load_run, run_config
from taming.command_line import Extend, Parser, add_trust_flag, add_weight_flags, parse_size
from taming.errors import command
from taming.export.diffusers import from_diffusers, to_diffusers
from taming.export.foreign import FOREIGN, to_layout
from taming.export.onnx import to_onnx
from taming.export.weights import save_weights, weights_of
from taming.models.cond_transformer import Net2NetTransformer

TARGET = "the file to write; of diffusers, from_diffusers and onnx a folder, which is made"
BASE = "merged over the run's configs"
FORMATS = ("safetensors", "diffusers", "from_diffusers", "onnx", *FOREIGN)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description="Write a model for other programs.")
    add_trust_flag(parser)
    add_weight_flags(parser)
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("source", metavar="IN", help="the run: its folder or checkpoint")
    parser.add_argument("target", metavar="OUT", help=TARGET)
    parser.add_argument(
        "-b", "--base", nargs="*", action=Extend, default=[], metavar="YAML", help=BASE
    )
    parser.add_argument("--size", type=parse_size, help="height,width of the images of ONNX graphs")
    return parser


def first_stage(source: str, base: Sequence[str]) -> tuple[Any, Mapping[str, Any]]:
    """A run's first stage, and the parameters in its config."""
    model, run, _ = load_run(source, base)
    section = run_config(run, base, used=["model"]).model
    if isinstance(model, Net2NetTransformer):
        print(f"{source} is a transformer: its first stage alone is written")
        return model.first_stage_model, section.params.first_stage_config.get("params") or {}
    return model, section.get("params") or {}


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    place = f"the folder {args.target}"
    if args.format == "from_diffusers":
        from_diffusers(args.source, args.target)
    elif args.format == "safetensors":
        model, run, _ = load_run(args.source, args.base)
        save_weights(weights_of(model), args.target, run.model)
        place = args.target
    elif args.format == "diffusers":
        model, params = first_stage(args.source, args.base)
        to_diffusers(model, params.get("ddconfig"), args.target)
    elif args.format in FOREIGN:
        model, _ = first_stage(args.source, args.base)
        to_layout(model, args.format, args.target)
        place = args.target
    else:
        model, _ = first_stage(args.source, args.base)
        files = to_onnx(model, args.target, args.size)
        place += f", as {' and '.join(file.name for file in files)}"
    print(f"{args.format}: {args.source} is in {place}")


if __name__ == "__main__":
    main()

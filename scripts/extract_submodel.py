"""Write a part of a checkpoint, such as a transformer's first stage, as one of its own.

python scripts/extract_submodel.py logs/<run> vqgan.ckpt first_stage_model
"""

from __future__ import annotations

from collections.abc import Sequence

from taming.command_line import Parser, add_weight_flags
from taming.errors import command
from taming.export.weights import extract_submodel


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description="Write a part of a checkpoint as one of its own.")
    parser.add_argument("source", metavar="IN", help="the checkpoint, or a run")
    parser.add_argument("target", metavar="OUT", help="the file to write: .ckpt or .safetensors")
    parser.add_argument(
        "submodel",
        metavar="SUBMODEL",
        nargs="?",
        default="first_stage_model",
        help="first_stage_model (default), cond_stage_model, transformer, ...",
    )
    add_weight_flags(parser, parts=False)
    args = parser.parse_args(argv)
    count = extract_submodel(args.source, args.target, args.submodel)
    print(f"{count} tensors of {args.submodel} are in {args.target}")


if __name__ == "__main__":
    main()

"""Draw many images from a class-conditional or unconditional transformer.

    python scripts/sample_fast.py -r logs/<run> -n 100 --classes 0,1,2

They go to `<run>/samples/top_k_<k>_temp_<t>_top_p_<p>/<global step>/[<class>/]NNNNNN.png`. The same
command again draws only what is missing.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from taming.errors import UserError, command
from taming.sampling import SampleSettings, labels_for
from taming.sampling.arguments import make_parser, parse
from taming.sampling.folder import SampleFolder, fill_folder
from taming.sampling.load import choose_device, choose_dtype, load_transformer
from taming.sampling.requests import parse_classes


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = make_parser("Draw many images from a class-conditional or unconditional transformer.")
    parser.add_argument(
        "-n", "--num_samples", type=int, default=50000, help="per class, where there are classes"
    )
    parser.add_argument("--batch_size", type=int, default=25, help="drawn at once (default 25)")
    parser.add_argument("-k", "--top_k", type=int, default=250, help="draw among the k likeliest")
    parser.add_argument(
        "-t", "--temperature", type=float, default=1.0, help="1: as the model has it"
    )
    parser.add_argument(
        "-p", "--top_p", type=float, default=1.0, help="draw among the likeliest that make up p"
    )
    parser.add_argument("--classes", help="comma list of class numbers (default: all)")
    return parse(parser, argv)


def check(args: Namespace) -> SampleSettings:
    for name in ("num_samples", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.temperature == 0:
        raise UserError("--temperature 0 would draw one image again and again; it must be above 0")
    return SampleSettings(args.temperature, args.top_k, args.top_p)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = read_arguments(argv)
    settings, classes = check(args), parse_classes(args.classes)
    device = choose_device(args.device)
    dtype = choose_dtype(args.precision, device)
    model, run, step = load_transformer(args.resume, args.base, device, overrides)
    labels = labels_for(model, classes)
    name = f"top_k_{args.top_k}_temp_{args.temperature:.2f}_top_p_{args.top_p}"
    root = Path(args.outdir or run.folder) / "samples" / name / str(step)
    record = {"seed": args.seed, "global_step": step, "dtype": str(dtype), **asdict(settings)}
    folder = SampleFolder(root, record)
    drawn = fill_folder(
        folder,
        model,
        labels,
        args.num_samples,
        settings,
        batch_size=args.batch_size,
        seed=args.seed,
        dtype=dtype,
    )
    print(f"{len(labels) * args.num_samples} samples are in {root} ({drawn} of them new)")


if __name__ == "__main__":
    main()

"""Draw many images from a class-conditional or unconditional transformer.

    python scripts/sample_fast.py -r logs/<run> -n 100 --classes 0,1,2

They go to `<run>/samples/top_k_<k>_temp_<t>_top_p_<p>/<global step>/[<class>/]NNNNNN.png`. The same
command again draws only what is missing; `torchrun --nproc_per_node 4 scripts/sample_fast.py ...`
shares the work.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from taming.devices import choose_device, choose_dtype
from taming.distributed import own_share
from taming.errors import UserError, command
from taming.sampling import SampleSettings, labels_for
from taming.sampling.arguments import add_drawing, add_images, check_drawing, make_parser, parse
from taming.sampling.folder import Job, SampleFolder, fill_folder
from taming.sampling.load import load_transformer
from taming.sampling.rejection import Classifier, group_of
from taming.sampling.requests import parse_classes
from taming.sampling.sizes import tokens_for


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = make_parser("Draw many images from a class-conditional or unconditional transformer.")
    parser.add_argument(
        "-n", "--num_samples", type=int, default=50000, help="per class, where there are classes"
    )
    add_drawing(parser, top_k=250)
    add_images(parser)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile; for many batches of one size"
    )
    return parse(parser, argv)


def check(args: Namespace) -> SampleSettings:
    if args.num_samples < 1:
        raise UserError(f"--num_samples must be at least 1, not {args.num_samples}")
    if args.temperature == 0:
        raise UserError("--temperature 0 would draw one image again and again; it must be above 0")
    group_of(args.reject_ratio)
    if (args.reject_ratio < 1) != (args.classifier is not None):
        raise UserError("rejection needs both --reject-ratio below 1 and --classifier")
    return check_drawing(args)


def folder_for(args: Namespace, run: Path, step: int, dtype: torch.dtype) -> SampleFolder:
    name = f"top_k_{args.top_k}_temp_{args.temperature:.2f}_top_p_{args.top_p}"
    if args.guidance != 1:
        name += f"_guidance_{args.guidance}_{args.guidance_schedule}"
    if args.height or args.width:
        name += f"_size_{args.height or 'own'}x{args.width or 'own'}"
    if args.classifier:
        name += f"_reject_{args.reject_ratio}"
    settings = asdict(check(args))
    record = {"seed": args.seed, "global_step": step, "dtype": str(dtype), **settings}
    if args.classifier:
        record |= {"reject_ratio": args.reject_ratio, "classifier": args.classifier}
    return SampleFolder(Path(args.outdir or run) / "samples" / name / str(step), record)


def job_for(args: Namespace, model: Any, device: torch.device) -> Job:
    return Job(
        labels=labels_for(model, parse_classes(args.classes)),
        num_samples=args.num_samples,
        settings=check(args),
        batch_size=args.batch_size,
        seed=args.seed,
        shape=tokens_for(model, args.height, args.width),
        share=own_share(),
        compiled=args.compile,
        ratio=args.reject_ratio,
        score=Classifier(args.classifier, device) if args.classifier else None,
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = read_arguments(argv)
    check(args)
    parse_classes(args.classes)
    device = choose_device(args.device)
    dtype = choose_dtype(args.precision, device)
    model, run, step = load_transformer(args.resume, args.base, device, overrides, dtype)
    job, folder = job_for(args, model, device), folder_for(args, run.folder, step, dtype)
    drawn = fill_folder(folder, model, job)
    total, (rank, processes) = len(job.labels) * job.num_samples, job.share
    if processes > 1:
        print(f"process {rank} of {processes} drew {drawn} of {total} samples in {folder.root}")
    else:
        print(f"{total} samples are in {folder.root} ({drawn} of them new)")


if __name__ == "__main__":
    main()

"""Draw an image for every condition of a run's data, beside the original and its reconstruction.

    python scripts/make_samples.py -r logs/<run> --outdir samples

They go to `<outdir>/<global step>_<top_k>_<temperature>/{originals,reconstructions,samples}/`, and
what the conditions look like to `conditioning/`. Images of any size are drawn, those of another
size than the training's through a sliding window. The same command again draws what is missing.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from taming.devices import choose_device, choose_dtype
from taming.errors import UserError, command
from taming.sampling import Request, sample_images
from taming.sampling.arguments import add_drawing, check_drawing, make_parser, parse
from taming.sampling.conditions import request_for
from taming.sampling.examples import Example, data_config, open_dataset, read_examples
from taming.sampling.folder import SampleFolder, save_png
from taming.sampling.load import load_transformer


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = make_parser("Draw an image for every condition of a run's data.")
    parser.add_argument(
        "-c", "--config", nargs="+", default=[], metavar="YAML", help="merged over --base's"
    )
    parser.add_argument(
        "--ignore_base_data", action="store_true", help="take the data from --base and --config"
    )
    parser.add_argument("-n", "--num_samples", type=int, help="the first n items (default: all)")
    parser.add_argument("--split", help="validation (default), train or test")
    add_drawing(parser, top_k=100, batch_size=4)
    return parse(parser, argv)


def missing(args: Namespace, dataset: Any, folder: SampleFolder) -> list[int]:
    if args.num_samples is not None and args.num_samples < 1:
        raise UserError(f"--num_samples must be at least 1, not {args.num_samples}")
    count = len(dataset) if args.num_samples is None else min(args.num_samples, len(dataset))
    finished = folder.finished(None)
    return [number for number in range(count) if number not in finished]


@torch.no_grad()
def show_example(model: Any, example: Example, root: Path) -> Request:
    """Write what there is before anything is drawn; the request for the rest."""
    device, name = model.device, f"{example.number:06}.png"
    x = example.x.to(device)
    quant, indices = model.encode_to_z(x)
    save_png(x[0], root / "originals" / name)
    save_png(model.decode_to_img(indices, quant.shape)[0], root / "reconstructions" / name)
    if example.c is not None:
        c = example.c.to(device)
        size = (x.shape[2], x.shape[3])
        pictures = model.condition_images(c, model.encode_to_c(c)[0], size)
        if "conditioning" in pictures:
            save_png(pictures["conditioning"][0], root / "conditioning" / name)
    return request_for(model, example.c, example.number, example.shape)


def draw(args: Namespace, model: Any, examples: Iterator[Example], folder: SampleFolder) -> None:
    settings, root = check_drawing(args), folder.root.parent
    for shape, group in groupby(examples, key=lambda example: example.shape):
        requests = (show_example(model, example, root) for example in group)
        for sample in sample_images(
            model, requests, settings, args.batch_size, args.seed, shape=shape
        ):
            folder.save(replace(sample, label=None))


@command
def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = read_arguments(argv)
    settings, base = check_drawing(args), [*args.base, *args.config]
    device = choose_device(args.device)
    dtype = choose_dtype(args.precision, device)
    model_base = args.base if args.ignore_base_data else base
    model, run, step = load_transformer(args.resume, model_base, device, overrides, dtype)
    dataset = open_dataset(data_config(run, base, overrides, args.ignore_base_data), args.split)
    name = f"{step}_{args.top_k}_{args.temperature}"
    root = Path(args.outdir or run.folder / "samples_of_data") / name
    record = {"seed": args.seed, "global_step": step, "dtype": str(dtype), **asdict(settings)}
    folder = SampleFolder(root / "samples", record)
    with tqdm(missing(args, dataset, folder), unit="image") as numbers:
        draw(args, model, read_examples(model, dataset, numbers), folder)
    print(f"originals, reconstructions and samples are in {root} ({len(numbers)} of them new)")


if __name__ == "__main__":
    main()

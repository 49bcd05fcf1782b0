"""Report on a trained transformer and its samples: numbers in JSON and a picture.

    python scripts/report.py -r logs/<run>

Reconstruction error, codebook usage and likelihood on the run's validation data; for samples of
classes, the share that a nearest-neighbour classifier of the training images names right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taming.checkpoint import run_config
from taming.config import instantiate_from_config
from taming.errors import UserError, command
from taming.evaluation.report import newest_samples, write_report
from taming.sampling.arguments import make_parser, parse
from taming.sampling.load import load_transformer


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("Report on a trained transformer and its samples.")
    parser.add_argument("--samples", type=Path, help="folder of samples (default: the newest)")
    args, overrides = parse(parser, argv)
    model, run, step = load_transformer(args.resume, args.base, args.device, overrides)
    samples = args.samples or newest_samples(run.folder)
    if not samples.is_dir():
        raise UserError(f"there is no folder {samples}; draw samples with scripts/sample_fast.py")
    config = run_config(run, args.base, overrides)
    data = instantiate_from_config(config.data, key="data")
    data.setup()
    outdir = Path(args.outdir or run.folder / "report")
    print_report(write_report(model, data, samples, outdir))
    print(f"step {step}; report.json and samples.png are in {outdir}")


def print_report(report: dict[str, Any]) -> None:
    stage, transformer, samples = report["first_stage"], report["transformer"], report["samples"]
    print(f"reconstruction error  L1 {stage['l1']:.4f} (images in [-1, 1]), {stage['psnr']:.1f} dB")
    print(
        f"codebook usage        {stage['codebook_usage']:.1%}, "
        f"perplexity {stage['codebook_perplexity']:.1f}"
    )
    print(
        f"validation loss       {transformer['nats_per_token']:.3f} nats per token, "
        f"{transformer['bits_per_dimension']:.4f} bits per dimension "
        f"(uniform: {transformer['uniform_nats_per_token']:.3f} nats)"
    )
    if "named_right_by_5_neighbours" in samples:
        right = samples["named_right_by_5_neighbours"]
        print(f"samples named right   {right:.1%} of {samples['images']}")


if __name__ == "__main__":
    main()

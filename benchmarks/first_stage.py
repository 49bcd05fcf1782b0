"""Images per second of a first stage: encode to indices and decode, with and without torch.compile.

    python benchmarks/first_stage.py --batch_size 4 --rounds 7

Random weights of the given config's model; the figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measure import interleaved, write_results

from taming import limits
from taming.config import instantiate_from_config, load_config, without_checkpoint_paths
from taming.devices import choose_device
from taming.errors import command

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure encode and decode of a first stage.")
    parser.add_argument("--config", default="configs/custom_vqgan.yaml")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="bf16: by autocast")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def candidates(model: Any, images: torch.Tensor) -> dict[str, Callable[[], Any]]:
    indices = model.encode_to_indices(images)
    compiled_encode = torch.compile(model.encode_to_indices)
    compiled_decode = torch.compile(model.decode_indices)
    return {
        "encode": lambda: model.encode_to_indices(images),
        "encode, compiled": lambda: compiled_encode(images),
        "decode": lambda: model.decode_indices(indices),
        "decode, compiled": lambda: compiled_decode(indices),
    }


def peak_memory(device: torch.device) -> float:
    """GiB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return (limits.peak_memory() or 0) / 2**30


@command
@torch.no_grad()
def main() -> None:
    args = read_arguments()
    device = choose_device(args.device)
    config = without_checkpoint_paths(load_config([args.config]).model)
    config["params"]["lossconfig"] = None
    model = instantiate_from_config(config, key="model").to(device).eval()
    images = torch.rand(args.batch_size, 3, args.size, args.size, device=device) * 2 - 1
    with torch.autocast(device.type, DTYPES[args.dtype], enabled=args.dtype != "fp32"):
        seconds = interleaved(candidates(model, images), device, args.rounds, warmup=1)
    rates = {name: round(args.batch_size / s["median"], 3) for name, s in seconds.items()}
    report = {**vars(args), "images_per_second": rates, "seconds_per_batch": seconds}
    report["peak_memory_gib"] = round(peak_memory(device), 2)
    path = write_results(f"first_stage-{args.dtype}", device, report)
    for name, rate in rates.items():
        print(f"{name:18}{rate:10.2f} images/s")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

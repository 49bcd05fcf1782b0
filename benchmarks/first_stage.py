"""Images per second of a first stage: encode to indices and decode, with and without torch.compile.

    python benchmarks/first_stage.py --batch_size 4 --repeats 7

Random weights of the given config's model; writes benchmarks/results/first_stage_<device>.json. The
variants take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from taming.config import instantiate_from_config, load_config, without_checkpoint_paths

RESULTS = Path(__file__).parent / "results"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure encode and decode of a first stage.")
    parser.add_argument("--config", default="configs/custom_vqgan.yaml")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="height and width of the images")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="bf16: by autocast")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def timed(call: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def variants(model: Any, images: torch.Tensor) -> dict[str, Callable[[], Any]]:
    with torch.no_grad():
        indices = model.encode_to_indices(images)
    compiled_encode = torch.compile(model.encode_to_indices)
    compiled_decode = torch.compile(model.decode_indices)
    return {
        "encode": lambda: model.encode_to_indices(images),
        "encode compiled": lambda: compiled_encode(images),
        "decode": lambda: model.decode_indices(indices),
        "decode compiled": lambda: compiled_decode(indices),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    config = without_checkpoint_paths(load_config([args.config]).model)
    config["params"]["lossconfig"] = None
    model = instantiate_from_config(config, key="model").to(device).eval()
    images = torch.rand(args.batch_size, 3, args.size, args.size, device=device) * 2 - 1
    calls = variants(model, images)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=args.dtype != "fp32"):
        first = {name: timed(call, device) for name, call in calls.items()}  # warm-up, compilation
        for _ in range(args.repeats):
            for name, call in calls.items():
                times[name].append(timed(call, device))
    return {
        name: {
            "median_seconds": round(statistics.median(values), 4),
            "images_per_second": round(args.batch_size / statistics.median(values), 2),
            "first_call_seconds": round(first[name], 2),
        }
        for name, values in times.items()
    }


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> float:
    """GiB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    args = read_arguments()
    device = torch.device(args.device)
    scores = measure(args)
    result = {
        "hardware": hardware(device),
        "torch": torch.__version__,
        **vars(args),
        "results": scores,
        "peak_memory_gib": round(peak_memory(device), 2),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"first_stage_{device.type}_{args.dtype}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    for name, score in scores.items():
        print(f"{name:16} {score['images_per_second']:8.2f} images/s")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

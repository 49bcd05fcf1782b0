"""Images a second of training at the papers' sizes, and the share of what the GPU can compute.

    python benchmarks/throughput.py first_stage --batch_size 96 --device cuda
    python benchmarks/throughput.py transformer --batch_size 64 --device cuda --profile

The first stage is f16 of 256 x 256 with LPIPS and discriminator, configs/custom_vqgan.yaml; the
transformer that of configs/cin_transformer.yaml, 1.4 billion parameters, on cached codes. Both in
mixed precision, with all options that make them faster. Steps come one after the other, as in
training, without waiting for each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from codes import batches, training_step
from footprint import PEAK, Meter
from measure import synchronise, write_results
from torch import nn
from torch.profiler import ProfilerActivity, profile
from training import first_stage_of, our_first_stage_step

from taming.config import instantiate_from_config, load_config, without_checkpoint_paths
from taming.devices import choose_device
from taming.errors import command

CONFIGS = Path(__file__).parents[1] / "configs"
# Dense bf16 by the data sheets, without sparsity.
PEAKS = {"H100": PEAK, "H200": PEAK, "A100": 312e12}
Step = Callable[[], None]
Cast = Callable[[], Any]


def fast(args: argparse.Namespace, default: str, stage: str) -> Any:
    """A config's `model` section with the options of configs/fast."""
    own = args.config or CONFIGS / f"{default}.yaml"
    return load_config([own, CONFIGS / "fast" / f"{stage}.yaml"], args.overrides).model


def first_stage(args: argparse.Namespace, device: torch.device, compiled: bool) -> Step:
    config = fast(args, "custom_vqgan", "first_stage")
    model, x = first_stage_of(config, {"compile": compiled}, args, device)
    return our_first_stage_step(model, x, lambda: cast(device))


def transformer(args: argparse.Namespace, device: torch.device, compiled: bool) -> Step:
    config = without_checkpoint_paths(fast(args, "cin_transformer", "transformer"))
    config["params"]["compile"] = compiled
    with device:
        model = instantiate_from_config(config, "model", "module")
    _, codes = batches(model, 64, 1)  # what they look like
    places = model.transformer.get_block_size() + 1 - codes["condition_codes"].shape[1]
    vocabulary = config["params"]["transformer_config"]["params"]["vocab_size"]
    shape = args.batch_size, *2 * (int(places**0.5),)
    batch = {
        "codes": torch.randint(vocabulary, shape, device=device),
        "condition_codes": codes["condition_codes"].expand(args.batch_size, -1),
    }
    model.ways.prepare(model.transformer)
    return training_step(model, batch, lambda: cast(device))


MODELS = {"first_stage": first_stage, "transformer": transformer}


def cast(device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16)


def seconds_a_step(step: Step, device: torch.device, steps: int, rounds: int) -> list[float]:
    """Of `steps` steps in a row, `rounds` times."""
    measured = []
    for _ in range(rounds):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronise(device)
        measured.append((time.perf_counter() - start) / steps)
    return measured


def kernels(step: Step, device: torch.device) -> str:
    """A table of what a step spends its time on."""
    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
    with profile(activities=kinds) as profiled:
        step()
        synchronise(device)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiled.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=110)


def peak_of(device: torch.device) -> float | None:
    """Operations a second that the data sheet promises, where it is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def flop_of(args: argparse.Namespace, device: torch.device) -> int:
    """Of a step, per image, a multiply-add being two."""
    one = argparse.Namespace(**{**vars(args), "batch_size": 1})
    step = MODELS[args.model](one, device, False)
    with Meter(nn.Module()) as meter:
        step()
    return meter.flop


def measured(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    flop = flop_of(args, device)
    torch.manual_seed(0)
    step = MODELS[args.model](args, device, not args.eager)
    start = time.perf_counter()
    step()
    synchronise(device)
    first = time.perf_counter() - start
    seconds = seconds_a_step(step, device, 3, 1)  # warms up
    seconds = seconds_a_step(step, device, args.steps, args.rounds)
    rate = args.batch_size / statistics.median(seconds)
    peak = peak_of(device)
    report = {
        **{name: value for name, value in vars(args).items() if name != "no_results"},
        "dtype": "bf16",
        "seconds_of_first_step": first,
        "seconds_a_step": seconds,
        "images_per_second": rate,
        "tflop_per_image": flop / 1e12,
        "tflop_per_second": rate * flop / 1e12,
        "share_of_peak": rate * flop / peak if peak else None,
    }
    if device.type == "cuda":
        report["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    print(f"{args.model}, batch {args.batch_size}: {rate:.1f} images/s, {report['share_of_peak']}")
    if args.profile:
        print(kernels(step, device))
    return report


def name_of(args: argparse.Namespace) -> str:
    """Of the result: that of the paper's model, which the README and docs/scaling.md show, is the
    default's alone."""
    other = [Path(args.config).stem] if args.config else []
    other += [f"{args.size}px"] if args.size else []
    other += ["eager"] * args.eager + ["changed"] * bool(args.overrides)
    return "-".join(["throughput", args.model, *other])


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", choices=tuple(MODELS))
    parser.add_argument("--config", help="another config (default: the paper's)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--size", type=int, help="side of the images (default: the config's)")
    parser.add_argument("--steps", type=int, default=10, help="timed together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--profile", action="store_true", help="print what takes the time")
    parser.add_argument("--no_results", action="store_true", help="print, and write no file")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    args = parser.parse_args()
    device = choose_device(args.device)
    report = measured(args, device)
    if not args.no_results:
        print(f"written to {write_results(name_of(args), device, report)}")


if __name__ == "__main__":
    main()

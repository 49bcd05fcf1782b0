"""Tokens per second of the sampling engine, against written-out loops, and its memory.

    python benchmarks/sampling.py                      # small: seconds
    python benchmarks/sampling.py --size cpu           # 12 layers, width 768: minutes
    python benchmarks/sampling.py --size gpu --device cuda --precision bf16

The baselines, always eager and in fp32: caches that grow by concatenation (see `Published` and
`PerLayer`), and a whole window for every token of a larger image, of which some are timed, as all
of them take equally long. On a processor also the engine with torch's own kernels for the linear
layers, where it has chosen others. A third part has models that read in any order, which sample
eight tokens a step (`orders.generate_in_steps`), against the engine's one, and as many operations
in products with many rows, as fast as this machine has them: what they could reach at most.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from measure import (
    copy_bandwidth,
    interleaved,
    read_bandwidth,
    reset_peak,
    resident_bytes,
    write_results,
)
from several_tokens import TOKENS_A_STEP, in_steps, operations, products_alone, sizes_of_steps
from torch import Tensor
from torch.nn import functional as F

from taming.devices import choose_device, choose_dtype
from taming.errors import command
from taming.kernel_choice import TORCH, choices
from taming.modules.transformer.decoding import CachedDecoder, generate
from taming.modules.transformer.mingpt import GPT
from taming.modules.transformer.token_choice import sample_token
from taming.sampling import sample_sliding_window

WINDOWS_TIMED = 8


@dataclass(frozen=True)
class Shape:
    """A transformer that samples `tokens` after one, at each of the batch sizes."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    tokens: int
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """A transformer that samples grids of side x side tokens through a window."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    side: int
    window: int = 16


SIZES = {
    "small": (Shape(2, 64, 4, 256, 64, (1, 8)), Grid(2, 64, 4, 256, 12, 4)),
    "cpu": (Shape(12, 768, 12, 1024, 256, (1, 8, 25)), Grid(6, 512, 8, 1024, 32)),
    "gpu": (Shape(48, 1536, 24, 16384, 256, (1, 25)), Grid(24, 1024, 16, 1024, 64)),
}


def make_gpt(
    shape: Shape | Grid, block_size: int, device: torch.device, target_positions: bool = False
) -> GPT:
    torch.manual_seed(0)
    sizes = (shape.vocabulary, block_size, shape.layers, shape.heads, shape.width)
    with device:
        gpt = GPT(*sizes, target_positions=target_positions)
    return gpt.eval().requires_grad_(False)


class PerLayer:
    """A growing cache at its best: each layer concatenates the new token to its own past."""

    def __init__(self, layers: int) -> None:
        self.past: list[Tensor] = []  # (2, B, heads, n, size) of every layer
        self.layers = layers

    def extended(self, layer: int, new: Tensor) -> Tensor:
        """All keys and values (2, B, heads, n + 1, size), with the `new` ones."""
        if len(self.past) < self.layers:
            self.past.append(new)
        else:
            self.past[layer] = torch.cat((self.past[layer], new), dim=-2)
        return self.past[layer]


class Published(PerLayer):
    """The original's cache: a list of what every step added. All of it is concatenated before the
    next step, and again with the new token in every layer."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.steps: list[Tensor] = []  # (layers, 2, B, heads, 1, size) of every step
        self.step: list[Tensor] = []

    def extended(self, layer: int, new: Tensor) -> Tensor:
        if not layer and self.steps:
            self.past = list(torch.cat(self.steps, dim=-2))
        self.step.append(new)
        whole = torch.cat((self.past[layer], new), dim=-2) if self.steps else new
        if len(self.step) == self.layers:
            self.steps.append(torch.stack(self.step))
            self.step = []
        return whole


@torch.inference_mode()
def concatenating(gpt: GPT, prompt: Tensor, steps: int, kind: type[PerLayer]) -> Tensor:
    """Greedy tokens with keys and values that are concatenated at every step."""
    idx, tokens, cache = prompt, [], kind(len(gpt.blocks))
    for n in range(steps):
        x = gpt.tok_emb(idx) + gpt.pos_emb[:, n : n + 1]
        for number, block in enumerate(gpt.blocks):
            attn: Any = block.attn
            normed = block.ln1(x)  # type: ignore[operator]
            q, k, v = (
                layer(normed).unflatten(2, (attn.n_head, -1)).transpose(1, 2)
                for layer in (attn.query, attn.key, attn.value)
            )
            k, v = cache.extended(number, torch.stack((k, v)))
            weights = (q @ k.transpose(2, 3) / k.shape[-1] ** 0.5).softmax(-1)
            x = x + attn.proj((weights @ v).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln2(x))  # type: ignore[operator]
        idx = F.softmax(gpt.head(gpt.ln_f(x))[:, -1], dim=-1).argmax(-1, keepdim=True)
        tokens.append(idx)
    return torch.cat(tokens, dim=1)


def engine(
    gpt: GPT, prompt: Tensor, dtype: torch.dtype, compiled: bool = False, kernel: str | None = None
) -> Callable[[], Tensor]:
    """A function that samples greedily with one decoder, which all calls share.

    `kernel` is that of the linear layers; by default the one that is chosen on this machine.
    """
    steps = gpt.config.block_size
    decoder = CachedDecoder(gpt, len(prompt), steps, dtype, compiled=compiled, kernel=kernel)
    return lambda: generate(decoder, prompt, steps, lambda logits, n: sample_token(logits))


def full_windows(gpt: GPT, grid: Grid, mapped: bool, device: torch.device) -> Callable[[], None]:
    """A function that runs `WINDOWS_TIMED` windows through the whole transformer."""
    tokens = grid.window**2 * (2 if mapped else 1)
    idx = torch.zeros(1, tokens, dtype=torch.long, device=device)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(WINDOWS_TIMED):
            gpt(idx)

    return run


def memory(gpt: GPT, batch: int, steps: int, device: torch.device) -> dict[str, float]:
    """MiB of weights and of the cache, and the ratio of decoding's peak to their sum."""
    weights = sum(p.numel() * p.element_size() for p in gpt.parameters())
    prompt = torch.zeros(batch, 1, dtype=torch.long, device=device)
    engine(gpt, prompt, gpt.pos_emb.dtype)()  # stacks or packs weights, loads kernels
    reset_peak(device)
    before = resident_bytes(device)
    engine(gpt, prompt, gpt.pos_emb.dtype)()
    taken = resident_bytes(device, peak=True) - before
    config = gpt.config
    cache = 2 * config.n_layer * config.n_embd * batch * steps * gpt.pos_emb.element_size()
    return {
        "weights_mib": weights / 2**20,
        "cache_mib": cache / 2**20,
        "peak_over_weights_and_cache": (weights + taken) / (weights + cache),
    }


def measure_steps(args: argparse.Namespace, shape: Shape, device: torch.device) -> dict[str, Any]:
    dtype, results = choose_dtype(args.precision, device), {}
    gpt = make_gpt(shape, shape.tokens, device)
    # Of their own, as an engine may pack the weights of its model.
    sampling_gpt = make_gpt(shape, shape.tokens, device).to(dtype)
    for batch in args.alone or shape.batches:
        prompt = torch.zeros(batch, 1, dtype=torch.long, device=device)
        candidates: dict[str, Callable[[], Any]] = {
            "engine": engine(sampling_gpt, prompt, dtype, args.compile)
        }
        if not args.alone:
            fp32 = "" if dtype == torch.float32 else ", fp32"
            candidates |= {
                f"published{fp32}": partial(concatenating, gpt, prompt, shape.tokens, Published),
                f"per layer{fp32}": partial(concatenating, gpt, prompt, shape.tokens, PerLayer),
            }
        if device.type == "cpu":
            plain = gpt if dtype == torch.float32 else make_gpt(shape, shape.tokens, device)
            candidates["torch's kernels"] = engine(plain.to(dtype), prompt, dtype, kernel=TORCH)
            tokens = [candidates[name]() for name in ("engine", "torch's kernels")]
        seconds = interleaved(candidates, device, args.rounds, 1)
        row = summary(seconds, batch * shape.tokens)
        if device.type == "cpu":
            row["tokens equal to those by torch's kernels"] = bool(torch.equal(*tokens))
        row |= memory(sampling_gpt, batch, shape.tokens, device)
        read = row["weights_mib"] + row["cache_mib"] / 2  # the cache is half full on average
        row["gb_per_s"] = read * 2**20 * shape.tokens / seconds["engine"]["median"] / 1e9
        bandwidth = copy_bandwidth(device) if device.type == "cuda" else read_bandwidth(device)
        row["share_of_bandwidth"] = row["gb_per_s"] / bandwidth
        results[f"batch {batch}"] = row
        print_row(f"steps, batch {batch}", row)
    return results


def measure_parallel(
    args: argparse.Namespace, shape: Shape, device: torch.device
) -> dict[str, Any]:
    dtype, results = choose_dtype(args.precision, device), {}
    raster = make_gpt(shape, shape.tokens, device).to(dtype)
    any_order = make_gpt(shape, shape.tokens, device, target_positions=True).to(dtype)
    for batch in shape.batches:
        prompt = torch.zeros(batch, 1, dtype=torch.long, device=device)
        candidates: dict[str, Callable[[], Any]] = {
            "engine": engine(raster, prompt, dtype),
            "several a step": in_steps(any_order, prompt, dtype),
        }
        needed = batch * operations(any_order, sizes_of_steps(shape.tokens))
        candidates["products alone"] = products_alone(any_order, batch, needed, dtype)
        seconds = interleaved(candidates, device, args.rounds, 1)
        row = summary(seconds, batch * shape.tokens)
        row["steps"] = shape.tokens // TOKENS_A_STEP
        row["times faster"] = 1 / row["several a step over engine"]
        row["times faster at most"] = 1 / row["products alone over engine"]
        row["gflop_per_s of products"] = needed / seconds["products alone"]["median"] / 1e9
        results[f"batch {batch}"] = row
        print_row(f"several a step, batch {batch}", row)
    return results


def measure_windows(args: argparse.Namespace, grid: Grid, device: torch.device) -> dict[str, Any]:
    dtype, results = choose_dtype(args.precision, device), {}
    gpt = make_gpt(grid, 2 * grid.window**2, device)
    sampling_gpt = gpt if dtype == torch.float32 else make_gpt(grid, 2 * grid.window**2, device)
    sampling_gpt.to(dtype)
    positions = grid.side**2
    for mapped in (True, False):
        size = (1, grid.side, grid.side) if mapped else (1, 1)
        cond = torch.zeros(size, dtype=torch.long, device=device)
        candidates: dict[str, Callable[[], Any]] = {
            "engine": partial(
                sample_sliding_window,
                sampling_gpt,
                cond,
                (grid.side, grid.side),
                grid.window,
                temperature=0.0,
            ),
            "full windows": full_windows(gpt, grid, mapped, device),
        }
        seconds = interleaved(candidates, device, args.rounds, 1)
        for key, value in seconds["full windows"].items():
            seconds["full windows"][key] = value * positions / WINDOWS_TIMED
        name = "map condition" if mapped else "unconditional"
        results[name] = summary(seconds, positions)
        print_row(f"windows, {name}", results[name])
    return results


def summary(seconds: dict[str, dict[str, float]], tokens: int) -> dict[str, Any]:
    medians = {name: times["median"] for name, times in seconds.items()}
    return {
        "seconds": seconds,
        "tokens_per_s": {name: tokens / median for name, median in medians.items()},
        **{
            f"{name} over engine": median / medians["engine"]
            for name, median in medians.items()
            if name != "engine"
        },
    }


def print_row(name: str, row: dict[str, Any]) -> None:
    """Print a row as soon as it is measured: the next one can take minutes."""
    figures = {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}
    print(f"{name}: {figures}", flush=True)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile of the engine's steps"
    )
    parser.add_argument(
        "--alone",
        type=int,
        nargs="+",
        metavar="BATCH",
        help="the engine's steps with batches of these sizes, without baselines",
    )
    parts = ("steps", "windows", "parallel")
    parser.add_argument("--only", choices=parts, help="measure one of the parts")
    parser.add_argument("--no_results", action="store_true", help="print, and write no file")
    args = parser.parse_args()
    device = choose_device(args.device)
    shape, grid = SIZES[args.size]
    report: dict[str, Any] = {name: getattr(args, name) for name in ("rounds", "precision")}
    report |= {"compiled": args.compile, "dtype": str(choose_dtype(args.precision, device))}
    if args.only in (None, "steps"):
        report["steps"] = {"shape": asdict(shape), **measure_steps(args, shape, device)}
    if args.only in (None, "parallel") and not args.alone:
        report["parallel"] = {"shape": asdict(shape), **measure_parallel(args, shape, device)}
    if args.only in (None, "windows"):
        report["windows"] = {"shape": asdict(grid), **measure_windows(args, grid, device)}
    report["kernels"] = dict(choices)
    if not args.no_results:
        compiled, alone = "compiled" * args.compile, "alone" * bool(args.alone)
        name = filter(None, ("sampling", args.size, args.precision, compiled, alone, args.only))
        path = write_results("-".join(name), device, report)
        print(f"written to {path}")


if __name__ == "__main__":
    main()

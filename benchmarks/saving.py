"""How long training stops for a checkpoint, and how long until it is whole on the disk.

    python benchmarks/saving.py                      # a state of 1 GB
    python benchmarks/saving.py --gigabytes 0.1      # seconds
    python benchmarks/saving.py --device cuda

The state is like a transformer's: weights and two moments of each. Stopped in the background is the
time that `CheckpointWriter.save` takes; in the foreground, that of `save_atomic`. The baseline is
`torch.save`, which neither waits for the disk nor looks at what it has written. While a checkpoint
is written, the main thread counts short steps: the longest gap between two is the other part of
what training feels.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import write_results
from tqdm import tqdm

from taming.checkpoint import CheckpointWriter, save_atomic
from taming.checkpoint.checksum import verify
from taming.devices import choose_device
from taming.errors import command

LAYERS, TENSORS = 24, 12  # of weights in a layer


def make_state(gigabytes: float, device: torch.device) -> dict[str, Any]:
    """Weights, and the state that Adam has for them."""
    size = int(gigabytes * 1e9 / 4 / 3 / LAYERS / TENSORS)

    def tensors() -> list[torch.Tensor]:
        return [torch.rand(size, device=device) for _ in range(LAYERS * TENSORS)]

    moments = zip(tensors(), tensors(), strict=True)
    state = {i: {"exp_avg": one, "exp_avg_sq": two} for i, (one, two) in enumerate(moments)}
    weights = {f"blocks.{i // TENSORS}.{i}": one for i, one in enumerate(tensors())}
    return {"state_dict": weights, "optimizer_states": [{"state": state}], "global_step": 1}


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def longest_gap(writer: CheckpointWriter, step: float = 0.002) -> float:
    """The longest time between two steps of the main thread while a checkpoint is written."""
    longest, before = 0.0, time.perf_counter()
    while writer.busy:
        time.sleep(step)
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    return longest


def one_round(content: dict[str, Any], writer: CheckpointWriter, folder: Path) -> dict[str, float]:
    """Seconds of everything, on files that exist already, as in training."""
    paths = [folder / "epoch=000001.ckpt", folder / "last.ckpt"]
    start = time.perf_counter()
    stopped = seconds(lambda: writer.save(content, paths))
    gap = longest_gap(writer)
    whole = time.perf_counter() - start
    failure = writer.failure()
    assert failure is None, failure
    return {
        "stopped_in_background": stopped,
        "longest_gap_while_writing": gap,
        "whole_after": whole,
        "stopped_in_foreground": seconds(lambda: save_atomic(content, paths[0], also=paths[1:])),
        "torch_save": seconds(lambda: torch.save(content, folder / "plain.ckpt")),
        "verify": seconds(lambda: verify(paths[1])),
    }


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how long a checkpoint stops training.")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--folder", help="where the temporary folder is made: on the disk to measure"
    )
    args = parser.parse_args()
    device = choose_device(args.device)
    content, writer = make_state(args.gigabytes, device), CheckpointWriter()
    writer.reserve(content)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        one_round(content, writer, Path(name))
        for _ in tqdm(range(args.rounds), desc="rounds", leave=False):
            rows.append(one_round(content, writer, Path(name)))
    figures = {
        key: {
            "median": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
        }
        for key in rows[0]
        for values in [[row[key] for row in rows]]
    }
    for key, figure in figures.items():
        print(f"{key:28}{figure}")
    report = {"gigabytes": args.gigabytes, "rounds": args.rounds, "seconds": figures}
    print(f"written to {write_results('saving', device, report)}")


if __name__ == "__main__":
    main()

"""Seconds and peak memory of loading a run, from a checkpoint with random weights.

    python benchmarks/loading.py                                  # 1.4 billion parameters
    python benchmarks/loading.py --config configs/digits_transformer.yaml    # small: seconds

The checkpoint lies in a temporary folder and is deleted. Every load is a process of its own; files
are taken out of the page cache before it, unless `--cached`. The baseline: torch.load, then
load_state_dict into a model with initial values.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measure import resident_bytes, write_results
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from taming.checkpoint import load_file, load_run, save_atomic
from taming.config import (
    get_obj_from_str,
    instantiate_from_config,
    load_config,
    without_checkpoint_paths,
)
from taming.errors import UserError, command

CKPT, SAFETENSORS = "model.ckpt", "model.safetensors"
CPU = torch.device("cpu")


def plainly(checkpoint: Path) -> nn.Module:
    """The model of a run as it is loaded without further thought."""
    model = instantiate_from_config(load_config([checkpoint.parent / "config.yaml"]).model)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict(state)
    return model.eval()


def ours(checkpoint: Path) -> nn.Module:
    return load_run(checkpoint)[0]


def into_a_model(checkpoint: Path) -> nn.Module:
    """As first stages and fine-tuning load: into a model with initial values."""
    model = instantiate_from_config(load_config([checkpoint.parent / "config.yaml"]).model)
    load_file(model, checkpoint)
    return model.eval()


CANDIDATES: dict[str, tuple[str, Callable[[Path], nn.Module]]] = {
    ".ckpt": (CKPT, ours),
    ".safetensors": (SAFETENSORS, ours),
    "ckpt_path": (CKPT, into_a_model),
    "torch.load": (CKPT, plainly),
}


def alone(call: Callable[..., Any], *args: Any) -> Any:
    """The result of `call` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call, *args).result()


def make_run(folder: Path, config: dict[str, Any]) -> dict[str, float]:
    """Write a run with random weights, in both formats; returns the model's size."""
    torch.manual_seed(0)
    model = instantiate_from_config(config, key="model")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    state = model.state_dict()
    size = sum(tensor.nbytes for tensor in state.values())
    if shutil.disk_usage(folder).free < 2.1 * size:
        raise UserError(
            f"{folder} has too little room for two files of {size / 2**30:.1f} GiB; name another "
            "folder with --folder"
        )
    OmegaConf.save({"model": config}, folder / "config.yaml")
    save_atomic({"state_dict": state}, folder / CKPT)
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / SAFETENSORS)
    return {"parameters": parameters, "gib": round(size / 2**30, 3)}


def forget(path: Path) -> None:
    """Take a file out of the page cache, so that it is read from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(name: str, folder: Path, cached: bool) -> dict[str, float]:
    """Seconds until the model is there, and until all its weights have been read; and the memory
    taken at the peak, in sizes of the model."""
    file, load = CANDIDATES[name]
    get_obj_from_str(load_config([folder / "config.yaml"]).model.target)  # imports come first
    if not cached:
        forget(folder / file)
    before, start = resident_bytes(CPU), time.perf_counter()
    model = load(folder / file)
    loaded = time.perf_counter() - start
    tensors = model.state_dict().values()
    for tensor in tensors:
        tensor.sum()
    read = time.perf_counter() - start
    taken = resident_bytes(CPU, peak=True) - before
    size = sum(tensor.nbytes for tensor in tensors)
    return {"seconds": loaded, "seconds_all_read": read, "peak_over_size": taken / size}


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Medians of times, the highest peak."""
    pick = {"peak_over_size": max}
    return {
        key: round(pick.get(key, statistics.median)([r[key] for r in rows]), 3) for key in rows[0]
    }


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure time and peak memory of loading a run.")
    parser.add_argument("--config", default="configs/cin_transformer.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cached", action="store_true", help="leave files in the page cache")
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    args = parser.parse_args()
    config = without_checkpoint_paths(load_config([args.config], args.overrides).model)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        report: dict[str, Any] = {**vars(args), "model": alone(make_run, folder, config)}
        del report["folder"]
        for _ in tqdm(range(args.rounds), desc="rounds", leave=False):
            for candidate in CANDIDATES:
                rows[candidate].append(alone(measure, candidate, folder, args.cached))
    report["loading"] = {candidate: summary(measured) for candidate, measured in rows.items()}
    for candidate, figures in report["loading"].items():
        print(f"{candidate:14}{figures}")
    path = write_results(f"loading-{Path(args.config).stem}", CPU, report)
    print(f"written to {path}")


if __name__ == "__main__":
    main()

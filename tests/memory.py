"""Peak memory of the ways in which weights come into a model, as JSON on stdout.

Run as a process of its own (`python -m tests.memory`): every case is measured in a fork, whose peak
starts at what it inherits.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from taming.checkpoint import load_run
from taming.config import instantiate_from_config
from tests.kit.models import first_stage_config, unconditional_config

CODES, CHANNELS, WIDTH, LAYERS = 4000, 512, 640, 8  # together 190 MB
WAYS = ("load_run", "ckpt_path", "first_stage_config.params.ckpt_path")
KINDS = ("model.ckpt", "model.safetensors", "before_1.6.ckpt")


def config(tiny: bool = False) -> dict[str, Any]:
    if tiny:
        return unconditional_config()
    stage = first_stage_config(n_embed=CODES, embed_dim=CHANNELS, lossconfig=None)
    return unconditional_config(
        first_stage_config=stage, gpt={"vocab_size": CODES, "n_embd": WIDTH, "n_layer": LAYERS}
    )


def memory(line: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(entry.split()[1]) * 1024 for entry in lines if entry.startswith(line))


def save(model: nn.Module, folder: Path, tiny: bool = False) -> None:
    """The model's weights as a file of each kind, beside the model's config."""
    folder.mkdir()
    OmegaConf.save({"model": config(tiny)}, folder / "config.yaml")
    state = model.state_dict()
    torch.save({"state_dict": state}, folder / KINDS[0])
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / KINDS[1])
    torch.save({"state_dict": state}, folder / KINDS[2], _use_new_zipfile_serialization=False)


def load(way: str, room: Path, kind: str) -> nn.Module:
    if way == "load_run":
        return load_run(room / "run" / kind)[0]
    node = made = config()
    *parents, last = way.split(".")
    for name in ["params", *parents]:
        node = node[name]
    node[last] = str(room / ("stage" if parents else "run") / kind)
    return instantiate_from_config(made)


def peak(way: str, room: Path, kind: str) -> float:
    """The most memory that the process took while loading and reading all weights once, in sizes
    of the model."""
    before = memory("VmRSS:")
    model = load(way, room, kind)
    with torch.no_grad():
        assert all(parameter.sum().isfinite() for parameter in model.parameters())
    size = sum(parameter.nbytes for parameter in model.parameters())
    return (memory("VmHWM:") - before) / size


def in_a_fork(measured: Callable[[], float]) -> float:
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(sending, json.dumps(measured()).encode())
        finally:
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    return float(result)


def write_all(room: Path) -> float:
    model: Any = instantiate_from_config(config())
    save(model, room / "run")
    save(model.first_stage_model, room / "stage")
    return 0.0


def warm_up(folder: Path) -> None:
    """Import and allocate what any load needs, so that it does not count."""
    save(instantiate_from_config(config(tiny=True)), folder, tiny=True)
    for kind in KINDS:
        load_run(folder / kind)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        warm_up(room / "tiny")
        in_a_fork(lambda: write_all(room))
        peaks = {
            f"{way} {kind}": in_a_fork(lambda way=way, kind=kind: peak(way, room, kind))
            for way in WAYS
            for kind in KINDS
        }
    json.dump(peaks, sys.stdout)


if __name__ == "__main__":
    main()

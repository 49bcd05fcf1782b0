"""A small model, its weights and their averages, and files with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taming.checkpoint import load_file
from taming.weight_choice import choosing_weights

State = dict[str, Tensor]


class Tiny(nn.Module):
    """The parts of a first stage, with a buffer, which averages leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        self.decoder = nn.Conv2d(2, 3, 1)
        self.quantize = nn.Embedding(4, 2)


def state_of(seed: int) -> State:
    torch.manual_seed(seed)
    return {
        name: torch.randn(t.shape) if t.is_floating_point() else torch.tensor(seed)
        for name, t in Tiny().state_dict().items()
    }


RAW, AVERAGE = state_of(1), state_of(2)
PARAMETERS = list(Tiny().named_parameters())


def prefixed(state: State, *parts: str) -> State:
    return {"".join(f"{part}." for part in parts) + name: t for name, t in state.items()}


def save(content: Any, folder: Path, kind: str = "zip") -> Path:
    path = folder / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "safetensors":
        save_file({name: t.contiguous() for name, t in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def loads_as(path: Path, expected: State, **choice: Any) -> None:
    model = Tiny()
    with choosing_weights(choice.get("kind"), choice.get("parts", ())):
        load_file(model, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name

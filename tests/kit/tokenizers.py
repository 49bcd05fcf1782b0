"""Tokenizers of other projects: their names and shapes, and golden numbers of their own code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from taming.checkpoint.layouts import LAYOUTS
from taming.checkpoint.layouts.base import shapes_of
from taming.config import instantiate_from_config
from tests.kit.real import FOLDER
from tests.support import GOLDEN

GOLDEN_SETS = FOLDER.parent / "tokenizers"
# By the golden set's name: that of the layout.
LAYOUT_OF = {
    "llamagen": "llamagen",
    "maskgit": "maskgit",
    "ibq": "ibq",
    "open_magvit2": "open_magvit2",
    "simvq": "simvq",
    "ldm_vq": "vqgan",
}
NAMES = list(LAYOUT_OF)

needs_golden_sets = pytest.mark.skipif(
    not GOLDEN_SETS.is_dir(), reason="no golden sets of tokenizers beside the sample data"
)


@cache
def manifests() -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes by names, without losses, of full-size checkpoints by their names."""
    written = json.loads((GOLDEN / "tokenizers.json").read_text())
    return {
        model: {
            name: tuple(shape)
            for name, shape in {**written.get(own.get("as"), {}), **own}.items()
            if name != "as"
        }
        for model, own in written.items()
    }


def empty(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@cache
def golden(name: str, kind: str = "golden") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and spec of a golden set."""
    with safe_open(GOLDEN_SETS / f"{kind}_{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
        return tensors, json.loads(file.metadata()["spec"])


def state_of(name: str) -> dict[str, Tensor]:
    """The weights of a golden set, by its project's names, with what it leaves out."""
    tensors, _ = golden(name)
    state = {k.removeprefix("state."): t for k, t in tensors.items() if k.startswith("state.")}
    return {"quantize.codebook_used": torch.zeros(65536), **state} if name == "llamagen" else state


def section_of(name: str) -> dict[str, Any]:
    """The `model` section of a golden set, by its layout."""
    section = LAYOUTS[LAYOUT_OF[name]].config(shapes_of(state_of(name)))
    section["params"]["ddconfig"]["resolution"] = 32
    if "attn_resolutions" in section["params"]["ddconfig"]:
        attends = section["params"]["ddconfig"]["attn_resolutions"]
        section["params"]["ddconfig"]["attn_resolutions"] = [side // 8 for side in attends]
    return section


def built(name: str, **params: Any) -> Any:
    """The model of a golden set with its weights."""
    section = section_of(name)
    model = instantiate_from_config({**section, "params": {**section["params"], **params}})
    state = LAYOUTS[LAYOUT_OF[name]].to_model(state_of(name))
    rest = model.load_state_dict(state, strict=False)
    assert not rest.unexpected_keys and not [n for n in rest.missing_keys if n[:5] != "loss."]
    return model


# ---------------------------------------------------------------------- small ones


def small_section(name: str) -> dict[str, Any]:
    """The `model` section of a layout's model with 16 codes and one halving."""
    blocks = 4 if name == "ibq" else 1
    network: dict[str, Any] = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": blocks}
    network |= {"in_channels": 3, "out_ch": 3, "resolution": 16, "z_channels": 4}
    if name == "maskgit":
        params = {"ddconfig": network, "n_embed": 16, "embed_dim": 4}
        return {"target": "taming.models.maskgit.MaskGitVQ", "params": params}
    quantizers = {
        "llamagen": {"target": "taming.modules.vqvae.cosine.CosineQuantizer"},
        "ibq": {"target": "taming.modules.vqvae.ibq.IBQ"},
        "open_magvit2": {"target": "taming.modules.vqvae.lfq.LFQ"},
        "simvq": {"target": "taming.modules.vqvae.simvq.SimVQ"},
        "vqgan": {"target": "taming.modules.vqvae.quantize.VectorQuantizer2"},
    }
    sizes = {"n_e": 16} if name == "open_magvit2" else {"n_e": 16, "e_dim": 4, "beta": 0.25}
    params = {"quantizer_config": {**quantizers[name], "params": sizes}}
    if name in ("open_magvit2", "simvq"):
        network |= {"adaptive": name == "open_magvit2"}
        return {
            "target": "taming.models.magvit2.MagVit2VQ",
            "params": {"ddconfig": network, **params},
        }
    network |= {"double_z": False, "attn_resolutions": [8]}
    return {"target": "taming.models.vqgan.VQModel", "params": {"ddconfig": network, **params}}


@cache
def _small_state(name: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = instantiate_from_config(small_section(name))
    return LAYOUTS[name].from_model(model.state_dict())


def small_state(name: str) -> dict[str, Tensor]:
    """The weights of such a model by its project's names."""
    return {key: tensor.clone() for key, tensor in _small_state(name).items()}


def foreign_file(name: str, folder: Path) -> Path:
    """A checkpoint of such a model as its project saves it, with no config beside it."""
    path = folder / "theirs" / f"{name}.pt"
    path.parent.mkdir(exist_ok=True)
    container = LAYOUTS[name].container
    torch.save({container: small_state(name)} if container else small_state(name), path)
    return path


@contextmanager
def fault(owner: Any, name: str, wrong: Callable[..., Any]) -> Iterator[None]:
    """With a function of a module or class replaced by a wrong one."""
    right = getattr(owner, name)
    setattr(owner, name, wrong)
    try:
        yield
    finally:
        setattr(owner, name, right)

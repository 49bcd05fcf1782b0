"""The YAMLs of configs/quantizers: each trains under its recipe, and all take as many bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from taming.config import instantiate_from_config, load_config
from taming.evaluation.tasks.quantizers import bits_of
from taming.models.vqgan import VQModel
from tests.support import ROOT

FOLDER = ROOT / "configs" / "quantizers"
RECIPES = {"digits": ROOT / "configs/digits_vqgan.yaml", "photographs": FOLDER / "photographs.yaml"}
BITS = {"digits": 16 * 6, "photographs": 64 * 8}  # of an image
QUANTIZERS = {
    *("vq", "cosine", "ema", "gumbel", "fsq", "lfq", "bsq", "ibq", "simvq", "residual"),
    *("grouped", "multi_scale"),
}
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if path.stem not in RECIPES)


def test_every_quantizer_has_one_for_each_kind_of_images() -> None:
    assert {path.stem for path in CONFIGS} == {
        f"{kind}_{q}" for kind in RECIPES for q in QUANTIZERS
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_takes_as_many_bits_as_the_others(path: Path) -> None:
    kind = path.stem.partition("_")[0]
    recipe = RECIPES[kind]
    text = path.read_text()
    command = (
        f"--base configs/{recipe.relative_to(ROOT / 'configs')} configs/quantizers/{path.name} "
    )
    assert f"#   python main.py {command}-t True\n" in text
    config = load_config([recipe, path])
    side = config.model.params.ddconfig.resolution
    config.model.params.ddconfig.ch = 32
    model = instantiate_from_config(config.model, "model", "module").eval()
    x = torch.rand(2, 3, side, side) * 2 - 1
    with torch.no_grad():
        indices = model.encode_to_indices(x)
        assert model.decode_indices(indices).shape == x.shape
    bits = bits_of(model.quantize, indices[:1])
    assert abs(bits - BITS[kind]) < 0.005 * BITS[kind]
    _require_gradients_of_all(model.train(), x)


def _require_gradients_of_all(model: VQModel, x: Tensor) -> None:
    """Processes that train one model together wait for the gradients of all its parameters."""
    reconstructions, codebook_loss = model(x)
    (reconstructions.sum() + codebook_loss.sum()).backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not {name for name in without if not name.startswith("loss.")}

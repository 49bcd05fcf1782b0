"""DALL-E's dVAE from pickles of the published structure, made by a package of its name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from taming.checkpoint import load_run
from taming.errors import UserError
from taming.models.dalle import DalleVAE, convert
from taming.modules.dalle import map_pixels, unmap_pixels
from tests.kit.datasets import images
from tests.kit.models import build, unconditional_config

PICKLES = Path(__file__).parent / "pickles"
HIDDEN, INIT, CODES = 8, 4, 16  # of that package


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pickles in `zip`, as torch writes them, and in `legacy`."""
    folder = tmp_path_factory.mktemp("dalle")
    command = [sys.executable, "-W", "ignore", "-m", "dall_e", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(PICKLES)})
    return folder


@pytest.fixture(params=["zip", "legacy"])
def published(request: pytest.FixtureRequest, written: Path, tmp_path: Path) -> Path:
    """A folder of pickles of one of both ways."""
    return shutil.copytree(written / request.param, tmp_path / "published")


@torch.no_grad()
def test_it_computes_what_the_published_networks_do(published: Path) -> None:
    model, _, _ = load_run(convert(published))
    assert not any(name.startswith("dall_e") for name in sys.modules)
    computed = load_file(published / "computed.safetensors")
    x, expected = computed["x"], computed["expected"]
    indices = model.encode_to_indices(x)
    assert indices.shape == (2, 2, 3) and torch.equal(indices, computed["indices"])
    torch.testing.assert_close(model.decode_indices(indices), expected)
    torch.testing.assert_close(model.decode_code(indices), expected)
    torch.testing.assert_close(model(x)[0], expected)
    quant, loss, (_, _, again) = model.encode(x)
    assert quant.shape == (2, INIT, 2, 3) and loss == 0 and torch.equal(again, indices)


def test_it_is_a_first_stage_of_a_transformer(published: Path) -> None:
    sizes = {"n_embed": CODES, "n_hid": HIDDEN, "n_init": INIT, "resolution": 16}
    stage = {
        "target": "taming.models.dalle.DalleVAE",
        "params": {**sizes, "ckpt_path": str(convert(published))},
    }
    model = build(unconditional_config(first_stage_config=stage)).eval()
    assert model.latent_shape() == (INIT, 2, 2)
    pictures = model.log_images({"image": images(2)})
    assert pictures["samples_nopix"].shape == (2, 3, 16, 16)


def test_pixels_are_mapped_there_and_back() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(map_pixels(x), torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x)
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [-1.0, 1.0]


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = DalleVAE()
    state = model.state_dict()
    assert state["encoder.blocks.output.conv.weight"].shape == (8192, 2048, 1, 1)
    assert state["quantize.embedding.weight"].shape == (8192, 128)
    assert model.latent_shape() == (128, 32, 32)


def test_something_else_is_refused(tmp_path: Path) -> None:
    for side in ("encoder", "decoder"):
        torch.save(nn.Sequential(nn.Conv2d(3, 4, 1)), tmp_path / f"{side}.pkl")
    with pytest.raises(UserError, match="are not DALL-E's"):
        convert(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "encoder.pkl")
    table = {"blocks.input.w": torch.zeros(3), "blocks.input.b": torch.zeros(1)}
    torch.save({"state_dict": table}, tmp_path / "decoder.pkl")
    with pytest.raises(UserError, match="are not DALL-E's"):
        convert(tmp_path)
    (tmp_path / "encoder.pkl").write_text("hello")
    with pytest.raises(UserError, match="encoder.pkl is a text file"):
        convert(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.pkl", "encoder.pkl"]

"""The network of DINOv2: its parts against PyTorch's, its weights, and other extractors' layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

from taming.errors import UserError
from taming.evaluation.metrics.dinov2 import VisionTransformer
from taming.evaluation.metrics.extractor_files import default_layer
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.resizes import CMMD, DGM_EVAL
from tests.kit.extractor import write_clip_weights, write_dinov2_weights

NAME = "dinov2-vit-s-14"
PICTURES = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dinov2_weights(tmp_path_factory.mktemp("weights") / "dinov2.pth", width=128)


def by_pytorch(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The class token of a DINOv2 whose positions need no resize, by PyTorch's own attention."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 14)
    x = torch.cat([state["cls_token"].repeat(len(x), 1, 1), x.flatten(2).transpose(1, 2)], dim=1)
    x, width = x + state["pos_embed"], x.shape[2]
    for number in range(2):
        prefix = f"blocks.{number}."
        x = block(x, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return F.layer_norm(x, (width,), *of(state, "norm"), 1e-6)[:, 0]


def block(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    width = x.shape[2]
    attention = nn.MultiheadAttention(width, width // 64, batch_first=True)
    projections = {"in_proj_": "attn.qkv.", "out_proj.": "attn.proj."}
    names = [(a, b, k) for a, b in projections.items() for k in ("weight", "bias")]
    attention.load_state_dict({f"{a}{k}": state[f"{b}{k}"] for a, b, k in names})
    y = F.layer_norm(x, (width,), *of(state, "norm1"), 1e-6)
    x = x + attention(y, y, y, need_weights=False)[0] * state["ls1.gamma"]
    y = F.layer_norm(x, (width,), *of(state, "norm2"), 1e-6)
    hidden = F.gelu(F.linear(y, *of(state, "mlp.fc1")))
    return x + F.linear(hidden, *of(state, "mlp.fc2")) * state["ls2.gamma"]


def of(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


@torch.no_grad()
def test_features_are_those_of_the_definition(tmp_path: Path) -> None:
    path = write_dinov2_weights(tmp_path / "small.pth", width=128, grid=16)  # of 224 pixels
    state = torch.load(path, weights_only=True)
    images = DGM_EVAL(PICTURES)
    values = (images / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    found = Extractor(NAME, weights=path, resize=DGM_EVAL)(PICTURES)["dinov2"]
    assert found.shape == (2, 128)
    torch.testing.assert_close(found, by_pytorch(state, values), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_positions_are_resized_for_fewer_patches(weights: Path) -> None:
    network = VisionTransformer.of_weights(torch.load(weights, weights_only=True))
    stored = network.pos_embed[0, 1:].view(37, 37, 128)
    for side in (37, 16, 5):
        positions = network._positions(side, side)
        assert positions.shape == (1, 1 + side**2, 128)
        assert torch.equal(positions[0, 0], network.pos_embed[0, 0])
        # A place is that of its middle, to the offset of a tenth of a patch in all.
        grid, middle = positions[0, 1:].view(side, side, 128), side // 2
        place = (middle + 0.5) * 37 / (side + 0.1) - 0.5
        around = stored[round(place), round(place)]
        nearest = F.cosine_similarity(grid[middle, middle], around, dim=0)
        assert nearest > 0.5


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other.pth does not fit the extractor .*it has no 'patch_"):
        Extractor(NAME, weights=tmp_path / "other.pth")


def test_clip_gets_the_middle_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, name = write_clip_weights(tmp_path / "clip.pt"), "clip-vit-l-14-336px"
    theirs = FeatureExtractorCLIP(name, ["clip"], str(path), verbose=False)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("a program is run"))
    assert torch.equal(Extractor(name, weights=path)(PICTURES)["clip"], theirs(PICTURES)[0])
    extractor = Extractor("clip-vit-l-14-336px", weights=path, resize=CMMD)
    found = extractor(PICTURES)["clip"]
    assert found.shape == (2, 16) and found.std() > 0
    middle = extractor(PICTURES[:, :, :, 10:50])["clip"]
    assert torch.equal(found, middle)
    with pytest.raises(UserError, match="has no layer for sfid; name one by --layer sfid=LAYER"):
        default_layer("clip-vit-l-14-336px", "sfid")

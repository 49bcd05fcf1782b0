"""The discriminator on DINO's features: the ViT, its file, and what is trained and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.errors import UserError
from taming.modules.discriminator.dino import DinoDiscriminator
from taming.modules.discriminator.vit import ViT
from tests.support import fill_by_name


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT like DINO's, 128 channels wide: two blocks, patches of 4 pixels, trained at 8 x 8."""
    path = tmp_path_factory.mktemp("dino") / "dino.pth"
    torch.save(fill_by_name(ViT(128, 2, 4, 4)).state_dict(), path)
    return path


def make(path: object, **changes: Any) -> DinoDiscriminator:
    torch.manual_seed(0)
    return DinoDiscriminator(
        **{"path": str(path), "width": 128, "layers": (0, 1), "size": 8} | changes
    )


def written_out(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The features of both blocks by torch's own attention."""
    tokens = F.conv2d(x, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], 4)
    h = torch.cat([weights["cls_token"].expand(len(x), -1, -1), tokens.flatten(2).mT], dim=1)
    h, out = h + weights["pos_embed"], []
    for n in (0, 1):
        w = {k.removeprefix(f"blocks.{n}."): v for k, v in weights.items() if f"blocks.{n}." in k}
        normed = F.layer_norm(h, (128,), w["norm1.weight"], w["norm1.bias"], 1e-6)
        attention = nn.MultiheadAttention(128, 2, batch_first=True)
        attention.load_state_dict(
            {
                "in_proj_weight": w["attn.qkv.weight"],
                "in_proj_bias": w["attn.qkv.bias"],
                "out_proj.weight": w["attn.proj.weight"],
                "out_proj.bias": w["attn.proj.bias"],
            }
        )
        h = h + attention(normed, normed, normed)[0]
        normed = F.layer_norm(h, (128,), w["norm2.weight"], w["norm2.bias"], 1e-6)
        hidden = F.gelu(F.linear(normed, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
        h = h + F.linear(hidden, w["mlp.fc2.weight"], w["mlp.fc2.bias"])
        out.append(h[:, 1:])
    return out


def test_the_vit_equals_one_that_is_written_out(file: Path) -> None:
    weights, x = torch.load(file), torch.randn(2, 3, 8, 8)
    model = ViT.of_weights(weights)
    for ours, theirs in zip(model(x, (0, 1)), written_out(weights, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert model(torch.randn(1, 3, 12, 16), (1,))[0].shape == (1, 12, 128)


def test_published_names() -> None:
    with torch.device("meta"):
        names = ViT(384, 12, 16, 196).state_dict()
    assert names["pos_embed"].shape == (1, 197, 384) and len(names) == 150
    of_block = {n.removeprefix("blocks.11.") for n in names if n.startswith("blocks.11.")}
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert of_block == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    rest = {name for name in names if not name.startswith("blocks.")}
    assert rest == {
        *("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"),
        *("norm.weight", "norm.bias"),
    }


def test_heads_alone_are_trained_and_saved(file: Path) -> None:
    network = make(file).train()
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    logits = network(images)
    assert logits.shape == (2, 2, 4)
    logits.sum().backward()
    assert images.grad.abs().sum() > 0 and all(p.grad is not None for p in network.parameters())
    assert all(name.startswith("heads.") for name in network.state_dict())
    assert not any(p.requires_grad for p in network.features.prepare().parameters())
    make("/nowhere").load_state_dict(network.state_dict())
    assert make(file, input_nc=1)(images[:, :1]).shape == (2, 2, 4)


def test_it_can_be_penalized_by_its_gradient(file: Path) -> None:
    network, images = make(file).double(), torch.randn(1, 3, 8, 8, requires_grad=True).double()
    (gradient,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert network.heads[0][0].parametrizations.weight.original.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": "/nowhere/dino.pth"}, "disc_config.params.path: there is no file /nowhere"),
        ({"path": __file__}, "disc_config.params.path: .* is not the ViT of a DINO"),
        ({"width": 384}, "disc_config.params.width is 384, but .* has 128 channels"),
        ({"layers": (1, 2)}, "disc_config.params.layers: .* has the blocks 0 to 1"),
        ({"size": 10}, "disc_config.params.size is 10; it must be a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_said_before_training(
    file: Path, changes: dict[str, Any], words: str
) -> None:
    network = make(**{"path": file, **changes})  # models are used without the file
    with pytest.raises(UserError, match=words):
        network.prepare()


def test_channels_it_has_no_features_of() -> None:
    with pytest.raises(UserError, match="input_nc is 2"):
        make("x", input_nc=2)


def test_a_first_pass_in_inference_mode_spoils_no_later_one(file: Path) -> None:
    """Neither what it loads nor what it moves, here to another precision."""
    for x in (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8).double()):
        discriminator = make(file).to(x.dtype)
        with torch.inference_mode():
            discriminator.features.beside(x)
        images = x.requires_grad_()
        discriminator(images).sum().backward()
        assert images.grad is not None and images.grad.abs().sum() > 0

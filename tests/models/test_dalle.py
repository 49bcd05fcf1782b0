"""DALL-E's dVAE from pickles of the published structure, which this test builds."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.checkpoint import load_run
from taming.errors import UserError
from taming.models.dalle import DalleVAE, convert
from taming.modules.dalle import map_pixels, unmap_pixels
from tests.models.tiny import images

HIDDEN, INIT, CODES, BLOCKS = 8, 4, 16, 2


class Conv2d(nn.Module):
    def __init__(self, n_in: int, n_out: int, kw: int) -> None:
        super().__init__()
        self.n_in, self.n_out, self.kw, self.device = n_in, n_out, kw, torch.device("cpu")
        self.w = nn.Parameter(torch.randn(n_out, n_in, kw, kw) / (n_in * kw**2) ** 0.5)
        self.b = nn.Parameter(torch.randn(n_out) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=(self.kw - 1) // 2)


class Block(nn.Module):
    sizes: tuple[int, ...]

    def __init__(self, n_in: int, n_out: int, n_layers: int) -> None:
        super().__init__()
        self.post_gain = 1 / n_layers**2
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        widths = [n_in, n_out // 4, n_out // 4, n_out // 4, n_out]
        path: list[tuple[str, nn.Module]] = []
        for i, size in enumerate(self.sizes):
            path += [(f"relu_{i + 1}", nn.ReLU())]
            path += [(f"conv_{i + 1}", Conv2d(widths[i], widths[i + 1], size))]
        self.res_path = nn.Sequential(OrderedDict(path))

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.post_gain * self.res_path(x)


class EncoderBlock(Block):
    sizes = (3, 3, 3, 1)


class DecoderBlock(Block):
    sizes = (1, 3, 3, 3)


class Net(nn.Module):
    blocks: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def groups(block: type[Block], widths: list[int], between: tuple[str, nn.Module]) -> list[Any]:
    made = []
    for g in range(4):
        parts: list[tuple[str, nn.Module]] = [
            ("block_1", block(widths[g], widths[g + 1], 4 * BLOCKS))
        ]
        parts += [("block_2", block(widths[g + 1], widths[g + 1], 4 * BLOCKS))]
        made.append(
            (f"group_{g + 1}", nn.Sequential(OrderedDict(parts + ([between] if g < 3 else []))))
        )
    return made


class Encoder(Net):
    def __init__(self) -> None:
        super().__init__()
        h = HIDDEN
        self.blocks = nn.Sequential(
            OrderedDict(
                [
                    ("input", Conv2d(3, h, 7)),
                    *groups(EncoderBlock, [h, h, 2 * h, 4 * h, 8 * h], ("pool", nn.MaxPool2d(2))),
                    ("output", output(8 * h, CODES)),
                ]
            )
        )


class Decoder(Net):
    def __init__(self) -> None:
        super().__init__()
        h, up = HIDDEN, ("upsample", nn.Upsample(scale_factor=2, mode="nearest"))
        self.blocks = nn.Sequential(
            OrderedDict(
                [
                    ("input", Conv2d(CODES, INIT, 1)),
                    *groups(DecoderBlock, [INIT, 8 * h, 4 * h, 2 * h, h], up),
                    ("output", output(h, 6)),
                ]
            )
        )


def output(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(n_in, n_out, 1)))


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[Path, nn.Module, nn.Module]]:
    """A folder with the pickles, and the networks themselves."""
    torch.manual_seed(0)
    encoder, decoder = Encoder(), Decoder()
    places = {
        "dall_e.encoder": [Encoder, EncoderBlock],
        "dall_e.decoder": [Decoder, DecoderBlock],
        "dall_e.utils": [Conv2d],
    }
    homes = {kind: kind.__module__ for kinds in places.values() for kind in kinds}
    sys.modules["dall_e"] = types.ModuleType("dall_e")
    for name, kinds in places.items():
        sys.modules[name] = types.ModuleType(name)
        for kind in kinds:
            kind.__module__ = name
            setattr(sys.modules[name], kind.__name__, kind)
    torch.save(encoder, tmp_path / "encoder.pkl")
    torch.save(decoder, tmp_path / "decoder.pkl")
    for name in ("dall_e", *places):
        del sys.modules[name]  # reading must not need the package
    yield tmp_path, encoder, decoder
    for kind, home in homes.items():
        kind.__module__ = home


@torch.no_grad()
def test_it_computes_what_the_published_networks_do(
    published: tuple[Path, nn.Module, nn.Module],
) -> None:
    folder, encoder, decoder = published
    model, _, _ = load_run(convert(folder))
    x = images(2, height=16, width=24).permute(0, 3, 1, 2)
    logits = encoder(0.8 * (x + 1) / 2 + 0.1)
    indices = model.encode_to_indices(x)
    assert indices.shape == (2, 2, 3) and torch.equal(indices, logits.argmax(dim=1))
    one_hot = F.one_hot(indices, CODES).permute(0, 3, 1, 2).float()
    mean = torch.sigmoid(decoder(one_hot)[:, :3])
    expected = ((mean - 0.1) / 0.8).clamp(0, 1) * 2 - 1
    torch.testing.assert_close(model.decode_indices(indices), expected)
    torch.testing.assert_close(model(x)[0], expected)
    quant, loss, (_, _, again) = model.encode(x)
    assert quant.shape == (2, INIT, 2, 3) and loss == 0 and torch.equal(again, indices)


def test_it_is_a_first_stage_of_a_transformer(
    published: tuple[Path, nn.Module, nn.Module],
) -> None:
    from tests.models.test_conditions import transformer_config
    from tests.models.tiny import build

    folder = convert(published[0])
    sizes = {"n_embed": CODES, "n_hid": HIDDEN, "n_init": INIT, "resolution": 16}
    stage = {
        "target": "taming.models.dalle.DalleVAE",
        "params": {**sizes, "ckpt_path": str(folder)},
    }
    model = build(transformer_config(first_stage_config=stage)).eval()
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
    (tmp_path / "encoder.pkl").write_text("hello")
    with pytest.raises(UserError, match="encoder.pkl is a text file"):
        convert(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.pkl", "encoder.pkl"]

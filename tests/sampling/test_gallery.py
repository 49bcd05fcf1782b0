from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from taming.sampling.gallery import GAP, HEAD, bar_picture, code_picture, gallery


def test_gallery() -> None:
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 4, 8)
    grey = Image.new("L", (200, 100), 128)
    page = gallery([[red, grey], [red]], titles=["red", "grey"], side=40)
    assert page.size == (2 * (40 + GAP) + GAP, HEAD + 2 * (40 + GAP) + GAP)
    pixels = np.asarray(page)
    top = HEAD + GAP
    assert (pixels[top : top + 20, GAP : GAP + 40] == [255, 0, 0]).all()
    assert (pixels[top + 20 : top + 40, GAP : GAP + 40] == 255).all()
    assert (pixels[top : top + 20, 2 * GAP + 40 : 2 * GAP + 80] == 128).all()
    assert (pixels[top + 40 + GAP :, 2 * GAP + 40 :] == 255).all()
    assert (pixels[:HEAD] == 0).any()
    assert grey.size == (200, 100)


def test_codes_have_colours() -> None:
    indices = torch.tensor([[0, 1, 0], [2, 1, 1]])
    pixels = np.asarray(code_picture(indices))
    assert pixels.shape == (2, 3, 3)
    assert (pixels[0, 0] == pixels[0, 2]).all()
    assert len({tuple(pixel) for pixel in pixels.reshape(-1, 3)}) == 3
    assert (np.asarray(code_picture(indices[:1]))[0, :2] == pixels[0, :2]).all()


def test_bars() -> None:
    dark = np.asarray(bar_picture(torch.tensor([0, 2, 4, 1]), (8, 4), "black"))[..., 0] == 0
    assert dark.sum(0).tolist() == [0, 0, 2, 2, 4, 4, 1, 1]
    many = np.asarray(bar_picture(torch.arange(100), (10, 50), "black"))[..., 0] == 0
    assert many.sum(0).tolist() == [round(50 * (9 + 10 * n) / 99) for n in range(10)]
    assert (np.asarray(bar_picture(torch.zeros(3), (6, 4))) == 255).all()

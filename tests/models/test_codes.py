"""Batches to images, indices to grids, and how much of a codebook is used."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from taming.errors import UserError
from taming.models.codes import (
    CodeHistogram,
    as_grid,
    as_pictures,
    codebook_use,
    each_label,
    in_colors,
    to_one_hot,
)
from tests.kit.models import build, first_stage_config
from tests.support import assert_close


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"depth": torch.zeros(1, 4, 4, 3)}, r"no 'image' \(it has depth\); set image_key"),
        ([torch.zeros(1, 4, 4, 3)], "must be dicts with an entry 'image'.* batch is a list"),
        ({"image": torch.zeros(1, 2, 2, 3) + 1j}, "batch of it is a torch.complex64"),
        ({"image": torch.zeros(1, 2, 2, 3, device="meta")}, "must be arrays or tensors"),
        ({"image": ["a.png"]}, "must be arrays or tensors.* a batch of it is a list"),
    ],
)
def test_batches_without_images(batch: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(first_stage_config()).get_input(batch, "image")


def test_bytes_and_images_without_channels_are_taken() -> None:
    model = build(first_stage_config())
    pixels = torch.tensor([[0, 51], [204, 255]], dtype=torch.uint8)
    expected = torch.tensor([[-1.0, -0.6], [0.6, 1.0]])[None, None]
    for image in (pixels[None, ..., None], pixels[None]):
        assert_close(model.get_input({"image": image}, "image"), expected)
    assert_close(model.get_input({"image": expected[:, 0].double()}, "image"), expected)


def test_grids() -> None:
    assert as_grid(torch.arange(8).reshape(2, 4)).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert as_grid(torch.zeros(2, 3, 5)).shape == (2, 3, 5)
    for shape in ((2, 5), (2, 8), (4,)):
        with pytest.raises(UserError, match="no square grid"):
            as_grid(torch.zeros(shape))


def test_stages_of_labels_are_told_by_their_channels_or_colors() -> None:
    kinds = {(3, None): False, (1, None): False, (3, 3): True, (1, 1): True, (2, None): True}
    kinds |= {(3, 5): False}  # these colors are of nothing
    for (channels, colors), labels in kinds.items():
        stage = build(first_stage_config(channels=channels, colorize_nlabels=colors))
        assert stage.channels == channels and stage.reads_labels == labels
    stage.encoder = torch.nn.Identity()
    with pytest.raises(UserError, match="the encoder, torch.*Identity, must have a Conv2d"):
        _ = stage.channels


def test_labels_are_shown_in_the_stages_colors() -> None:
    stage = build(first_stage_config(channels=5, colorize_nlabels=5))
    logits = torch.randn(2, 5, 4, 4)
    x = to_one_hot(logits)
    assert torch.equal(x.argmax(1), logits.argmax(1)) and torch.equal(x.sum(1), x[:, 0] * 0 + 1)
    assert torch.equal(stage.to_rgb(x), in_colors(x, stage.colorize))
    assert not torch.equal(stage.to_rgb(x), in_colors(x))
    same = torch.randn(3, 5, 1, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(in_colors(x), in_colors(x, same))
    assert in_colors(x).amin() == -1 and in_colors(x).amax() == 1
    assert in_colors(torch.zeros(1, 5, 4, 4)).isfinite().all()


def test_code_histogram() -> None:
    histogram = CodeHistogram(4)
    assert histogram.counts_so_far().tolist() == [0, 0, 0, 0]
    histogram.add(torch.tensor([[0, 0], [1, 1]]))
    histogram.add(torch.tensor([2, 2]))
    assert histogram.counts_so_far().tolist() == [2, 2, 2, 0]
    used, perplexity = codebook_use(histogram.taken())
    assert used == 0.75 and math.isclose(perplexity, 3.0)
    assert codebook_use(histogram.taken()) == (0, 1)  # starts anew
    used, perplexity = codebook_use(torch.tensor([1, 3, 0, 0]))
    assert used == 0.5 and math.isclose(perplexity, 4 / 3**0.75)


@pytest.mark.parametrize("labels", [1, 3, 5])
def test_pictures_of_labels_have_one_color_each_and_images_are_as_they_are(labels: int) -> None:
    stage = build(first_stage_config(channels=labels, colorize_nlabels=labels))
    logits = torch.randn(2, labels, 4, 4)
    shown = as_pictures(stage, logits)
    assert shown.shape == (2, 3, 4, 4)
    colors = stage.to_rgb(each_label(labels))[0, :, 0]  # (3, labels)
    assert torch.equal(shown, colors[:, logits.argmax(1)].transpose(0, 1))
    assert torch.equal(as_pictures(stage, logits[:1]), shown[:1])
    for channels in (1, 3):
        x = torch.randn(2, channels, 4, 4)
        assert as_pictures(build(first_stage_config(channels=channels)), x) is x
        assert as_pictures(object(), x) is x
    picture = torch.randn(2, 4 - labels if labels < 4 else 3, 4, 4)
    assert as_pictures(stage, picture) is picture  # no labels of this stage

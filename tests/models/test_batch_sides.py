"""Training batches that are resized to sides within a range."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from taming.errors import UserError
from taming.models.vqgan import VQModel
from tests.kit.first_stages import IMAGES, made
from tests.kit.models import GAN_LOSS


def test_batches_are_resized_as_images_are() -> None:
    model, x = made(VQModel, batch_resize_range=[32, 64]), IMAGES.permute(0, 3, 1, 2)
    for step in (0, 4):  # the largest, so that a lack of memory shows
        model._step = step
        resized = model.get_input({"image": IMAGES}, "image")
        assert torch.equal(resized, nn.functional.interpolate(x, (64, 64), mode="bicubic"))
    model._step = 5
    torch.manual_seed(0)
    sides = {model.get_input({"image": IMAGES}, "image").shape[2:] for _ in range(20)}
    assert sides == {(32, 32), (48, 48), (64, 64)}
    assert torch.equal(model.eval().get_input({"image": IMAGES}, "image"), x)
    made(VQModel, batch_resize_range=[32, 32])
    with pytest.raises(UserError, match="from 16 on"):
        made(VQModel, batch_resize_range=[8, 32])


@pytest.mark.parametrize(
    ("sides", "options", "message"),
    [
        ([16, 35], {}, "sides of 35: .*no multiples of 2"),
        ([16, 64], {"disc_num_layers": 3}, "sides of 16: .*discriminator"),
        (
            [32, 64],
            {
                "disc_config": {
                    "target": "taming.modules.discriminator.stylegan2.StyleGAN2Discriminator",
                    "params": {"resolution": 64, "base": 64, "widest": 4},
                }
            },
            "sides of (32|48): ",
        ),
        ([32, 64], {}, None),
    ],
)
def test_every_side_of_a_batch_is_looked_at_before_training(
    sides: list[int], options: dict[str, Any], message: str | None
) -> None:
    own = {} if "disc_config" in options else {"disc_num_layers": 1, "disc_ndf": 4}
    params = {"disc_start": 0, "perceptual_weight": 0.0, **own, **options}
    loss = {"target": GAN_LOSS["target"], "params": params}
    model = made(VQModel, batch_resize_range=sides, lossconfig=loss)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        model.check_batch({"image": torch.zeros(2, 64, 64, 3)})

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from taming.errors import UserError
from taming.guidance.cutouts import CutSettings
from taming.guidance.objective import (
    Objective,
    Target,
    class_target,
    image_targets,
    spherical_distance,
    text_targets,
)
from taming.guidance.start import chance_for
from tests.kit.guidance import Colors, small_guide

CUTS = CutSettings(cutouts=4, cut_jitter=0.0, cut_noise=0.0)
CHANCE = chance_for(0, 0, torch.device("cpu"))


def plain(color: tuple[float, float, float], side: int = 16) -> Tensor:
    return torch.tensor(color).view(1, 3, 1, 1).expand(1, 3, side, side).clone()


RED, BLUE = plain((1.0, 0.2, 0.2)), plain((0.2, 0.2, 1.0))


def test_distances_are_half_squared_angles() -> None:
    x = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 5.0], [-1.0, 0.0]], requires_grad=True)
    distances = spherical_distance(x, torch.tensor([3.0, 0.0]))
    angles = torch.tensor([0.0, math.pi / 4, math.pi / 2, math.pi])
    torch.testing.assert_close(distances, angles.square() / 2)
    (grad,) = torch.autograd.grad(distances.sum(), x)
    assert grad.isfinite().all()  # of equal and of opposite ones too
    assert grad[2, 0] < 0  # down the gradient is towards it


def test_weights_add_up_and_negative_ones_lead_away() -> None:
    encoder = Colors()
    losses = {}
    for prompts in (["red"], ["blue"], ["red:2"], ["red:2", "blue:-0.5"], ["red", "blue:0"]):
        objective = Objective(encoder, text_targets(encoder, prompts), CUTS)
        losses[tuple(prompts)] = float(objective(RED, CHANCE))
    near, far = losses["red",], losses["blue",]
    assert near < 0.1 < far
    assert losses["red:2",] == pytest.approx(2 * near)
    assert losses["red:2", "blue:-0.5"] == pytest.approx(2 * near - 0.5 * far)
    assert losses["red", "blue:0"] == pytest.approx(near)


def test_a_weight_is_behind_the_last_colon() -> None:
    encoder = Colors()
    targets = text_targets(encoder, ["time: red:-1.5", "blue"])
    assert [(t.name, t.weight) for t in targets] == [("time: red", -1.5), ("blue", 1.0)]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([""], "a prompt is empty"),
        (["  :2"], "a prompt is empty"),
        (["a fox:much"], "--prompt: the weight 'much' behind the last colon of 'a fox:much'"),
        (["a fox:nan"], "is no number"),
        (["a fox:inf"], "is no number"),
        (["a fox:1e39"], "--prompt: the weight of 'a fox:1e39' must be from -1000 to 1000"),
        (["a fox:-1000.5"], "must be from -1000 to 1000"),
        (["a" * 10_001], "10,001 characters"),
    ],
)
def test_bad_prompts(prompts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        text_targets(Colors(), prompts)


def test_guides_that_cannot_read_or_know_no_classes() -> None:
    with pytest.raises(UserError, match="this guide reads no text; give --clip"):
        text_targets(small_guide(), ["a fox"])
    assert text_targets(small_guide(), []) == []
    with pytest.raises(UserError, match="this guide knows no classes; give --classifier"):
        class_target(Colors(), 1)
    for label in (-1, 4):
        with pytest.raises(UserError, match=f"class {label} is out of range: .* 0 to 3"):
            class_target(small_guide(), label)
    with pytest.raises(UserError, match="no prompt with a weight other than 0"):
        Objective(Colors(), text_targets(Colors(), ["red:0"]))


def test_a_class_is_where_its_logit_alone_is_large() -> None:
    guide = small_guide(classes=5)
    goal = guide.encode_class(3)
    logits = torch.tensor([[0.0, 0, 0, 9, 0], [0.0, 0, 0, 0, 9], [5.0, 5, 5, 5.5, 5]])
    distances = spherical_distance(logits - logits.mean(1, keepdim=True), goal)
    torch.testing.assert_close(distances[[0, 2]], torch.zeros(2), atol=1e-6, rtol=0)
    assert distances[1] > 1


def test_image_prompts_and_their_weights(tmp_path: Path) -> None:
    path = tmp_path / "red:1.png"
    Image.new("RGB", (20, 12), (255, 51, 51)).save(path)
    encoder = Colors()
    whole, weighted = image_targets(encoder, [str(path), f"{path}:-0.25"])
    assert (whole.weight, weighted.weight) == (1.0, -0.25)
    for target, sign in ((whole, 1.0), (weighted, -0.25)):
        objective = Objective(encoder, [target], CUTS)
        assert float(objective(RED, CHANCE)) == pytest.approx(0, abs=1e-4)
        assert math.copysign(1, float(objective(BLUE, CHANCE))) == math.copysign(1, sign)
    for prompt, message in (
        (f"{path}:x", "--image_prompt: the weight 'x' behind the last colon of"),
        (f"{path}:2000", "--image_prompt: the weight of .* must be from -1000 to 1000"),
        (f"{path}x", f"there is no image {path}x"),
        ("nothing.png", "there is no image nothing.png"),
        ("nothing.png:2", "there is no image nothing.png$"),
        ("C:\\nothing.png", r"there is no image C:\\nothing.png"),
    ):
        with pytest.raises(UserError, match=message):
            image_targets(encoder, [prompt])


class Pixels(Colors):
    """Embeddings have a part for every pixel."""

    by_position = True

    def encode_images(self, images: Tensor) -> Tensor:
        super().encode_images(images)
        return images.flatten(1)


def test_guides_of_positions_see_the_prompt_through_the_same_cut_outs() -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    encoder = Pixels()
    objective = Objective(encoder, [Target("itself", 1.0, image=image)], CUTS)
    assert float(objective(image, CHANCE)) == pytest.approx(0, abs=1e-6)
    assert torch.equal(*encoder.seen)
    assert float(objective(image.flip(3), CHANCE)) > 0.01
    larger = Objective(encoder, [Target("x", 1.0, image=RED.repeat(1, 1, 2, 2))], CUTS)
    assert float(larger(RED, CHANCE)) == pytest.approx(0, abs=1e-6)


def test_the_mean_is_over_cut_outs_and_gray_images_are_seen_in_three_channels() -> None:
    encoder = Colors()
    objective = Objective(encoder, text_targets(encoder, ["red"]), CUTS)
    gray = torch.rand(1, 1, 16, 16)
    loss = float(objective(gray, chance_for(3, 0, torch.device("cpu"))))
    [seen] = encoder.seen
    assert seen.shape == (4, 3, 8, 8)
    each = spherical_distance(seen.mean((2, 3)) - 0.5, encoder.encode_texts(["red"])[0])
    assert loss == pytest.approx(float(each.mean()))

"""The loop, on a first stage and a classifier that are trained on digits here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from taming.data.digits import DigitsTrain
from taming.errors import UserError
from taming.evaluation.metrics.small_classifier import SmallClassifier, train_small_classifier
from taming.guidance import (
    CodeGrids,
    CutSettings,
    GuideSettings,
    GuideStep,
    Objective,
    Start,
    class_target,
    guide,
    image_start,
    text_targets,
)
from taming.guidance.loop import within_range
from taming.guidance.networks import ClassifierGuide
from taming.models.vqgan import VQModel
from taming.pictures import to_uint8
from tests.kit.guidance import Colors, small_guide
from tests.kit.models import GAN_LOSS, build, ddconfig, first_stage_config
from tests.kit.training import tiny_trainer

CUTS = CutSettings(cutouts=4)


def digits(side: int) -> tuple[DigitsTrain, Tensor, Tensor]:
    """The dataset, uint8 [N, 3, side, side], and their classes."""
    data = DigitsTrain(side)
    images = torch.stack([torch.from_numpy(data[i]["image"]) for i in range(len(data))])
    return data, to_uint8(images.permute(0, 3, 1, 2)), torch.from_numpy(data.labels).long()


def trained(folder: Path, side: int, ch_mult: list[int], batches: int) -> VQModel:
    """A VQGAN of digits, as its own training makes it in so many batches of 16."""
    loss = {**GAN_LOSS["params"], "disc_start": batches * 2 // 3, "disc_weight": 0.2}
    sizes = {**ddconfig(resolution=side, z_channels=16), "ch_mult": ch_mult}
    config = first_stage_config(
        ddconfig=sizes, n_embed=32, embed_dim=4, lossconfig={**GAN_LOSS, "params": loss}
    )
    model: VQModel = build(config)
    model.learning_rate = 2e-3
    loader: Any = DataLoader(digits(side)[0], batch_size=16, shuffle=True)  # type: ignore[arg-type]
    tiny_trainer(folder, max_steps=2 * batches, max_epochs=-1).fit(model, loader)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> VQModel:
    """Of 8 x 8 pixels, the digits' own size, and 4 x 4 codes."""
    return trained(tmp_path_factory.mktemp("stage"), 8, [1, 1], 50)


@pytest.fixture(scope="module")
def classifiers() -> list[SmallClassifier]:
    """One that guides, and one that has other weights."""
    _, images, labels = digits(8)
    return [train_small_classifier(images, labels, seed, epochs=3) for seed in (0, 1)]


def hits(stage: VQModel, judges: list[SmallClassifier], settings: GuideSettings) -> list[int]:
    """In how many of ten seeds each of the classifiers finds the target class, one per seed."""
    encoder, found = ClassifierGuide.of_small(judges[0]), [0] * len(judges)
    for seed in range(10):
        objective = Objective(encoder, [class_target(encoder, seed)], CUTS)
        image = guide(stage, objective, replace(settings, seed=seed)).image
        for place, judge in enumerate(judges):
            [probabilities] = judge.probabilities(to_uint8(image)[None])
            found[place] += int(probabilities.argmax()) == seed
    return found


@pytest.mark.parametrize("optimize", ["latent", "logits"])
def test_the_target_class_is_reached(
    stage: VQModel, classifiers: list[SmallClassifier], optimize: str
) -> None:
    found = hits(stage, classifiers, GuideSettings(optimize=optimize, steps=25))
    assert found[0] >= 9
    assert found[1] >= 8  # it is no deception of the one that guided
    nothing = hits(stage, classifiers, GuideSettings(optimize=optimize, steps=1, lr=1e-9))
    assert nothing[0] <= 4  # random codes are not


@pytest.mark.slow
@pytest.mark.parametrize("relaxation", ["latent", "straight-through", "gumbel", "soft"])
def test_digits_of_four_times_the_pixels(tmp_path: Path, relaxation: str) -> None:
    stage = trained(tmp_path, 16, [1, 1, 1], 150)
    _, images, labels = digits(16)
    judges = [train_small_classifier(images, labels, seed, epochs=5) for seed in (0, 1)]
    own = {} if relaxation == "latent" else {"optimize": "logits", "relaxation": relaxation}
    found = hits(stage, judges, GuideSettings(steps=60, **own))  # type: ignore[arg-type]
    assert found[0] >= 9 and found[1] >= 9


@pytest.fixture(scope="module")
def tiny() -> VQModel:
    return build(first_stage_config()).eval().requires_grad_(False)  # type: ignore[no-any-return]


@pytest.fixture
def objective() -> Objective:
    encoder = small_guide()
    return Objective(encoder, [class_target(encoder, 2)], CUTS)


def test_the_seed_and_the_number_decide_bit_for_bit(tiny: VQModel, objective: Objective) -> None:
    settings = GuideSettings(steps=4, optimize="logits", relaxation="gumbel")
    torch.manual_seed(1)
    first = guide(tiny, objective, settings)
    torch.manual_seed(2)  # nor does what else is random
    again = guide(tiny, objective, settings)
    assert torch.equal(first.image, again.image) and first.losses == again.losses
    for other in (
        guide(tiny, objective, settings, number=1),
        guide(tiny, objective, replace(settings, seed=1)),
    ):
        assert not torch.equal(first.image, other.image)
        assert not torch.equal(first.indices[0], other.indices[0])


def test_only_what_is_free_changes(tiny: VQModel, objective: Objective) -> None:
    grids = CodeGrids.of(tiny)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = tiny.encode_to_indices(image)[0]
    free = torch.zeros(8, 8, dtype=torch.bool)
    free[2:5, 3:] = True
    for options in ({}, {"optimize": "logits"}, {"ema": 0.5, "weight_decay": 0.1}):
        settings = GuideSettings(steps=12, lr=1.0, **options)  # type: ignore[arg-type]
        guided = guide(tiny, objective, settings, start=image_start(grids, image, free))
        [after] = guided.indices
        assert torch.equal(after[~free], before[~free])
        assert (after != before)[free].any()
        assert torch.equal(tiny.decode_indices(after[None])[0], guided.image)
    everything = guide(tiny, objective, settings, start=image_start(grids, image))
    assert (everything.indices[0] != before)[~free].any()
    with pytest.raises(UserError, match="the mask is of 8 x 8 codes, and the image of 8 x 4"):
        image_start(grids, image[:, :, :8], free)


def far_from_start(stage: VQModel, objective: Objective, **options: Any) -> float:
    """Mean squared distance of the image from that of its start."""
    start = Start([torch.arange(64) % 12], (8, 8))
    settings = GuideSettings(steps=20, unquantized=True, **options)
    image = guide(stage, objective, settings, start=start).image
    with torch.no_grad():
        before = stage.decode_indices(start.indices[0].view(1, 8, 8))[0]
    return float((image - before).square().mean())


def test_what_keeps_an_image_near_its_start(tiny: VQModel, objective: Objective) -> None:
    usual = far_from_start(tiny, objective)
    scale = float(CodeGrids.of(tiny).tables[0].var())
    assert far_from_start(tiny, objective, init_weight=100 / scale) < 0.5 * usual
    decay = 1 / float(CodeGrids.of(tiny).tables[0].std())  # of the offset, by lr = 0.1 deviations
    assert far_from_start(tiny, objective, weight_decay=9 * decay) < 0.5 * usual
    assert far_from_start(tiny, objective, lr=0.01) < 0.5 * usual
    assert far_from_start(tiny, objective, lr_schedule="cosine") < 0.9 * usual
    assert far_from_start(tiny, objective, ema=0.9) < 0.9 * usual


def test_text_moves_colors_and_a_negative_weight_moves_them_away(tiny: VQModel) -> None:
    encoder, reds = Colors(), {}
    whole = CutSettings(
        cutouts=1, cut_min=1.0, cut_flip=0.0, cut_degrees=0.0, cut_jitter=0.0, cut_noise=0.0
    )
    for prompt in ("red", "red:-1"):
        objective = Objective(encoder, text_targets(encoder, [prompt]), whole)
        guided = guide(tiny, objective, GuideSettings(steps=30, unquantized=True))
        means = guided.image.mean((1, 2))
        reds[prompt] = float(means[0] - means[1:].mean())
        assert guided.losses[-1] < guided.losses[0]
    start = guide(tiny, objective, GuideSettings(steps=1, lr=1e-9)).image.mean((1, 2))
    before = float(start[0] - start[1:].mean())
    assert reds["red:-1"] < before < reds["red"]


def test_steps_are_reported(tiny: VQModel, objective: Objective) -> None:
    steps: list[GuideStep] = []
    start = Start([torch.zeros(6, dtype=torch.long)], (2, 3))  # another size than the training's
    guided = guide(tiny, objective, GuideSettings(steps=3), start=start, on_step=steps.append)
    assert [(step.done, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert tuple(step.loss for step in steps) == guided.losses
    assert all(step.image.shape == guided.image.shape == (3, 4, 6) for step in steps)
    zeros = torch.zeros(1, 2, 3, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(steps[0].image, tiny.decode_indices(zeros)[0])
    assert all(p.grad is None for p in tiny.parameters())


def test_pixels_out_of_range_come_back() -> None:
    x = torch.tensor([-0.5, -0.5, 0.5, 1.5, 1.5], requires_grad=True)
    y = within_range(x)
    assert y.tolist() == [0, 0, 0.5, 1, 1]
    (grad,) = torch.autograd.grad(y, x, torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]))
    assert grad.tolist() == [0, -1, 1, 0, 1]


def test_a_loss_that_is_no_number_ends_it(tiny: VQModel) -> None:
    class Broken(Colors):
        def encode_images(self, images: Tensor) -> Tensor:
            return super().encode_images(images) * float("nan")

    encoder = Broken()
    objective = Objective(encoder, text_targets(encoder, ["red"]), CUTS)
    with pytest.raises(UserError, match="the loss is nan at step 1; give a smaller --lr"):
        guide(tiny, objective)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimize": "pixels"}, "--optimize takes latent or logits, not 'pixels'"),
        ({"relaxation": "hard"}, "--relaxation takes straight-through or gumbel or soft"),
        ({"lr_schedule": "linear"}, "--lr_schedule takes constant or cosine"),
        ({"steps": 0}, "--steps must be from 1 to 1,000,000, not 0"),
        ({"ema": 1.0}, "--ema must be from 0 to below 1, not 1.0"),
        ({"lr": 0.0}, "--lr must be above 0, not 0.0"),
        ({"gumbel_temperature": -1.0}, "--gumbel_temperature must be above 0"),
        ({"weight_decay": -1.0}, "--weight_decay must be 0 or more"),
        ({"init_weight": float("nan")}, "--init_weight must be 0 or more, not nan"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GuideSettings(**options)

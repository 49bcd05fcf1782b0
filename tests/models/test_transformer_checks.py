"""Options of the GPT beside the stages, the batches and the samples of a whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling import Request, SampleSettings, sample_images
from tests.kit.datasets import images
from tests.kit.models import (
    CLASSES,
    SPIRAL,
    build,
    tiny_model,
    transformer_config,
    unconditional_config,
)

VARIANTS: dict[str, Any] = {
    "rope_grid": [4, 4],
    "qk_norm": True,
    "norm": "rms",
    "mlp": "swiglu",
    "adaln_classes": 5,
}


def model_with(gpt: dict[str, Any] = VARIANTS, **changes: Any) -> Net2NetTransformer:
    return tiny_model(transformer_config(gpt, **changes))


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4, 4), (4, 6)])
def test_guided_samples_are_those_of_two_classes(shape: tuple[int, int]) -> None:
    """Guidance is between a class and none, in one window and in several."""
    model, request = model_with(cond_drop=0.1), Request(1, (3,), 3)
    settings = SampleSettings(temperature=0, guidance=2.0)
    indices = next(sample_images(model, [request], settings, shape=shape)).indices
    grid, conditions = indices.view(shape), torch.tensor([[3], [model.null_token]])
    for row in range(4):
        for column in range(shape[1]):
            left = min(max(column - 2, 0), shape[1] - 4)
            window = grid[:, left : left + 4].flatten()[: 4 * row + column - left]
            seen = torch.cat((conditions, window.expand(2, -1)), dim=1)
            logits = model.transformer(seen)[0][:, -1, :20]
            guided = settings.guide(logits, 0.0)
            assert guided.argmax() == grid[row, column]
    plain = next(sample_images(model, [request], SampleSettings(temperature=0), shape=shape))
    assert not torch.equal(plain.indices, indices)


def test_training_drops_classes() -> None:
    model = model_with(cond_drop=0.5).train()
    codes = torch.zeros(8, 4, 4, dtype=torch.long)
    torch.manual_seed(0)
    model.shared_step({"codes": codes, "condition_codes": codes[:, 0, :1]}).backward()
    rows = model.transformer.class_emb.weight.grad.abs().sum(1) > 0
    assert rows.tolist() == [True, False, False, False, False, True]


def test_one_pass_gives_all_codes() -> None:
    model = model_with(pkeep=0.0)
    sample = next(sample_images(model, [Request(0, (2,), 2)], SampleSettings(temperature=0)))
    logits = model.transformer(torch.full((1, 16), 2))[0][0, :, :20]
    assert torch.equal(sample.indices, logits.argmax(-1))


TOKENS = {
    "cond_stage_config": {
        "target": "taming.models.dummy_cond_stage.DummyCondStage",
        "params": {"conditional_key": "tokens"},
    },
    "cond_stage_key": "tokens",
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformer_config({"adaln_classes": 6}), "is 6, and the condition has 5 classes; make"),
        (unconditional_config({"adaln_classes": 1}), "is 1, and the condition is no class; make"),
        (transformer_config({"adaln_classes": 5}, **TOKENS), "condition is no class; make it 0"),
        (transformer_config({"rope_grid": [4, 4]}, permuter_config=SPIRAL), "order of rows"),
    ],
)
def test_options_that_do_not_fit_the_stages(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_model(config)


def batch_of(height: int, width: int, **entries: Any) -> dict[str, Any]:
    return {"image": torch.zeros(2, height, width, 3), "class_label": torch.zeros(2), **entries}


def test_images_of_another_grid_are_refused_before_training() -> None:
    model = model_with({"rope_grid": [2, 8], "block_size": 16})
    model.check_batch(batch_of(4, 16))
    for sides in ((8, 8), (16, 4)):
        with pytest.raises(UserError, match=r"rope_grid is \[2, 8\]"):
            model.check_batch(batch_of(*sides))
    cached = {"codes": torch.zeros(2, 8, 2).long(), "condition_codes": torch.zeros(2, 1).long()}
    with pytest.raises(UserError, match=r"is 8 x 2 codes, but .* rope_grid is \[2, 8\]"):
        model.check_batch(cached)


def test_conditions_of_another_length_are_refused() -> None:
    model = model_with({"rope_grid": [4, 4], "block_size": 18}, **TOKENS)
    message = "has 2 tokens, but block_size: 18 .* make it 3; with 2, block_size is 17"
    with pytest.raises(UserError, match=message):
        model.check_batch(batch_of(8, 8, tokens=torch.zeros(2, 2).long()))
    codes = torch.zeros(2, 16).long()
    with pytest.raises(UserError, match=message):
        model.predict(codes, codes[:, :2])
    with pytest.raises(UserError, match=message):
        model.sample(codes[:, :0], codes[:, :2], 16)
    with pytest.raises(UserError, match=message):
        next(sample_images(model, [Request(0, (1, 2), None)]))
    model.check_batch(batch_of(8, 8, tokens=torch.zeros(2, 3).long()))


def test_the_training_s_size_is_that_of_the_grid() -> None:
    """And not that of the first stage's config, 4 x 4."""
    model = model_with({"rope_grid": [2, 8], "block_size": 16})
    assert next(sample_images(model, [Request(0, (1,), 1)])).image.shape == (3, 4, 16)


def lengths(config: Any, **batch: Tensor) -> str:
    """What the check of a batch says."""
    model: Net2NetTransformer = build(config)
    with pytest.raises(UserError) as caught:
        model.check_batch(batch)
    return str(caught.value)


def test_block_size_is_compared_with_the_sequence() -> None:
    small: dict[str, Any] = {"vocab_size": 40, "block_size": 15}
    batch = {"image": images(1, 3, 8, 8), "class_label": torch.tensor([1])}
    text = lengths(transformer_config(gpt=small), **batch)
    assert text.endswith("16 tokens of an image and 1 of its condition; make it at least 16")
    build(transformer_config(gpt={**small, "block_size": 16})).check_batch(batch)
    coordinates = {"target": "taming.modules.misc.coord.CoordStage"}
    coordinates["params"] = {"n_embed": 20, "down_factor": 2}  # type: ignore[assignment]
    conditioned = {"cond_stage_config": coordinates, "cond_stage_key": "coord"}
    batch = {"image": images(1, 3, 8, 8), "coord": torch.zeros(1, 8, 8, 1)}
    assert "16 of its condition; make it at least 31" in lengths(
        transformer_config(gpt=small, **conditioned), **batch
    )
    own = transformer_config(gpt=small, cond_stage_config="__is_first_stage__")
    own["params"] |= {"cond_stage_key": "image", "downsample_cond_size": 4}
    assert "4 of its condition; make it at least 19" in lengths(own, image=images(1, 3, 8, 8))
    text = lengths(unconditional_config(gpt={"block_size": 63}), image=images(1))
    assert text.endswith("make it at least 64")


def test_an_order_of_another_size_is_refused() -> None:
    order = {"target": "taming.modules.transformer.permuter.ZCurve", "params": {"H": 8, "W": 4}}
    text = lengths(
        transformer_config(permuter_config=order, cond_stage_config=CLASSES),
        image=images(1, 3, 8, 8),
        class_label=torch.tensor([1]),
    )
    assert "orders 32 positions, but the latent has 16" in text

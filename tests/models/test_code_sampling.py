"""A transformer in use: images and conditions to indices, samples, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from taming.config import instantiate_from_config
from taming.models.codes import in_colors, to_one_hot
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.own_methods import one_pass_logits
from taming.modules.transformer.token_choice import filter_logits, sample_token
from taming.pictures import text_images
from taming.sampling import requests_for_labels, sample_images
from tests.kit.models import first_stage_config, tiny_model, transformer_config
from tests.support import assert_close, defaults

SIZES = {"vocab_size": 23, "block_size": 80}


def pictures(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 8, 12, generator=generator) * 2 - 1  # 4 x 6 codes


@torch.no_grad()
def test_images_become_indices_and_come_back() -> None:
    model, x = tiny_model(), pictures()
    assert (model.n_codes, model.null_token) == (20, 22)
    stage = model.first_stage_model
    quant, indices = model.encode_to_z(x)
    grid = stage.encode_to_indices(x)
    assert grid.shape == (2, 4, 6) and torch.equal(indices, grid.flatten(1))
    assert torch.equal(model.encode_to_indices(x), grid)
    expected = stage.decode(quant)
    assert_close(model.decode_to_img(indices, quant.shape), expected)
    assert_close(model.decode_indices(grid), expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [-1, 6])
def test_conditions_become_indices(size: int) -> None:
    maps = {"cond_stage_config": "__is_first_stage__", "cond_stage_key": "sketch"}
    model = tiny_model(transformer_config(SIZES, **maps, downsample_cond_size=size))
    c = pictures()
    small = c if size < 0 else torch.nn.functional.interpolate(c, size=(6, 6))
    quant, indices = model.encode_to_c(c)
    assert quant.shape[2:] == ((4, 6) if size < 0 else (3, 3))
    assert torch.equal(indices, model.first_stage_model.encode_to_indices(small).flatten(1))


def test_batches_are_read() -> None:
    model = tiny_model()
    batch = {"image": pictures(5).permute(0, 2, 3, 1), "class_label": torch.arange(5)}
    x, c = model.get_xc(batch, 3)
    assert torch.equal(x, pictures(5)[:3]) and c.tolist() == [0, 1, 2]
    assert all(len(part) == 5 for part in model.get_xc(batch))
    numbers = torch.zeros(3, 2, dtype=torch.float64)
    assert model.get_input("tokens", {"tokens": numbers}).dtype == torch.float32
    assert model.get_input("tokens", {"tokens": numbers.long()}).dtype == torch.int64


@pytest.mark.parametrize("kind", ["class", "coordinates", "image"])
def test_logged_pictures_are_four_of_the_images_size(kind: str) -> None:
    stages: dict[str, Any] = {
        "class": {},
        "coordinates": {
            "cond_stage_config": {
                "target": "taming.modules.misc.coord.CoordStage",
                "params": {"n_embed": 20, "down_factor": 2},
            },
            "cond_stage_key": "coord",
        },
        "image": {"cond_stage_config": first_stage_config(), "cond_stage_key": "image"},
    }
    model = tiny_model(transformer_config(SIZES, **stages[kind]))
    batch = {"image": pictures(5).permute(0, 2, 3, 1), "class_label": torch.arange(5)}
    logged = model.log_images({**batch, "coord": torch.rand(5, 8, 12)})
    assert ("conditioning_rec" in logged) == (kind != "class")
    for name, picture in logged.items():
        channels = 1 if kind == "coordinates" and name.startswith("conditioning") else 3
        assert picture.shape == (4, channels, 8, 12), name


@pytest.mark.parametrize("pkeep", [1.0, 0.0])
@torch.no_grad()
def test_samples_are_what_the_forward_pass_and_their_options_give(pkeep: float) -> None:
    model = tiny_model(transformer_config(pkeep=pkeep))
    x, c = torch.tensor([[3, 9], [0, 19]]), torch.tensor([[1], [4]])
    options: dict[str, Any] = {"temperature": 1.9, "top_k": 9, "top_p": 0.9}
    told: list[int] = []
    torch.manual_seed(0)
    numbers = torch.rand(14, 2)
    expected = x
    one_pass = one_pass_logits(model.transformer, torch.cat((c, x), dim=1), 14)
    for n in range(14):
        logits = model.transformer(torch.cat((c, expected), dim=1))[0][:, -1]
        logits = logits if pkeep else one_pass[:, n]
        token = sample_token(filter_logits(logits[:, :20], **options), numbers[n])
        expected = torch.cat((expected, token[:, None]), dim=1)
    torch.manual_seed(0)
    sampled = model.sample(x, c, 14, sample=True, callback=told.append, **options)
    assert torch.equal(sampled, expected)
    assert told == list(range(14))


def test_logged_samples_begin_as_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    calls: list[tuple[Any, ...]] = []

    def sample(x: Tensor, c: Tensor, steps: int, temperature: float, **options: Any) -> Tensor:
        calls.append((x.shape[1], steps, temperature, options["sample"], options["top_k"]))
        return Net2NetTransformer.sample(model, x, c, steps, temperature, **options)

    monkeypatch.setattr(model, "sample", sample)
    images = torch.rand(3, 8, 8, 3) * 2 - 1
    model.log_images({"image": images, "class_label": torch.arange(3)}, temperature=0.8)
    assert calls == [(8, 8, 0.8, True, 100), (0, 16, 0.8, True, 100), (0, 16, 0.8, False, 100)]


def test_published_defaults_of_sampling() -> None:
    options = defaults(Net2NetTransformer.sample)
    assert options.pop("callback")(1) is None
    assert options == {"temperature": 1, "sample": False, "top_k": None, "top_p": None}
    shown = {"max_images": 4, "temperature": 1, "top_k": 100}
    assert defaults(Net2NetTransformer.log_images) == shown


def test_conditions_are_shown() -> None:
    """Numbers of classes in writing, labels in colors, lists of tokens not at all."""
    model, quant = tiny_model(), torch.zeros(2, 1)
    written = model.condition_images(torch.tensor([14, 3]), quant, (24, 32))["conditioning"]
    assert torch.equal(written, text_images(["14", "3"], (24, 32)))
    assert model.condition_images(torch.zeros(2, 5), quant, (24, 32)) == {}
    labels = torch.rand(2, 5, 8, 8)
    for changes in ({}, {"cond_stage_config": first_stage_config(channels=5, colorize_nlabels=5)}):
        model = tiny_model(transformer_config(**changes))
        stage = model.cond_stage_model
        colors = stage.colorize if changes else None
        quant = torch.rand(2, 4, 4, 4)
        shown = model.condition_images(labels, quant, (8, 8))
        assert torch.equal(shown["conditioning"], in_colors(to_one_hot(labels), colors))
        assert ("conditioning_rec" in shown) == bool(changes)
        if changes:
            again = in_colors(to_one_hot(stage.decode(quant)), colors)
            assert torch.equal(shown["conditioning_rec"], again)
    model.be_unconditional = True
    assert model.condition_images(labels, quant, (8, 8)) == {}


def test_samples_of_random_weights_are_said_to_be_noise(caplog: pytest.LogCaptureFixture) -> None:
    model = instantiate_from_config(transformer_config())
    c = torch.tensor([[0]])
    requests = requests_for_labels(model, [1], 1)
    list(sample_images(model.eval(), requests))
    model.sample(c[:, :0], c, 2)
    (record,) = caplog.records
    assert "random weights" in record.message and record.levelname == "WARNING"
    loaded = instantiate_from_config(transformer_config())
    loaded.load_state_dict(tiny_model().state_dict())
    loaded.sample(c[:, :0], c, 2)
    assert len(caplog.records) == 1

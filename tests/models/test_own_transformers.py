"""Transformers, stages, permuters and quantizers of a user's, and models in other precisions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import taming
from scripts.sample_fast import main as sample_fast
from taming.errors import UserError
from taming.models.stage_identity import describe_condition
from taming.modules.transformer.blocks import Block
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.permuter import AbstractPermuter
from taming.modules.util import Encoding
from taming.modules.vqvae.nearest import VectorQuantizer2
from taming.sampling import Request, SampleSettings, requests_for_labels, sample_images
from tests.kit.datasets import images
from tests.kit.models import (
    SEGMENTATION,
    VQGAN,
    build,
    cosine_config,
    first_stage_config,
    tiny_model,
    transformer_config,
)
from tests.kit.runs import tiny_run
from tests.kit.training import fit

COLUMNS = {"image": images(height=8, width=8), "class_label": torch.arange(6) % 5}


class Own(nn.Module):
    """No GPT: the next token depends on the mean of those so far."""

    def __init__(self, vocab_size: int, block_size: int, **_: Any) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(vocab_size, 16), nn.LayerNorm(16)
        self.head, self.block_size = nn.Linear(16, vocab_size), block_size

    def get_block_size(self) -> int:
        return self.block_size

    def forward(self, idx, embeddings=None, targets=None):  # type: ignore[no-untyped-def]
        so_far = self.table(idx).cumsum(1) / torch.arange(1, idx.shape[1] + 1)[:, None]
        return self.head(self.norm(so_far)), None


class Configured(Own):
    def __init__(self, tokens: int, block_size: int, **_: Any) -> None:
        super().__init__(tokens, block_size)
        self.config = SimpleNamespace(vocab_size=tokens)


class Narrow(Own):
    def forward(self, idx, embeddings=None, targets=None):  # type: ignore[no-untyped-def]
        return super().forward(idx)[0][..., :5], None


class Silent(Own):
    def __init__(self, tokens: int, block_size: int) -> None:
        super().__init__(tokens, block_size)


class Endless(nn.Linear):
    def __init__(self, **_: Any) -> None:
        super().__init__(1, 1)


class Nothing:
    def __init__(self, **_: Any) -> None: ...


class Sevens(GPT):
    """A subclass whose logits are for token 7 alone."""

    def forward(self, idx, embeddings=None, targets=None):  # type: ignore[no-untyped-def, override]
        logits, loss = super().forward(idx, embeddings, targets)
        return logits * 1e-3 + 100.0 * (torch.arange(logits.shape[-1]) == 7), loss


class OwnBlock(Block):
    def forward(self, x, layer_past=None, return_present=False):  # type: ignore[no-untyped-def, override]
        return super().forward(x, layer_past, return_present)


class OwnBlocks(GPT):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.blocks = nn.Sequential(*(OwnBlock(self.config) for _ in self.blocks))


def own(name: str, **params: Any) -> dict[str, Any]:
    return {"target": f"{__name__}.{name}", "params": params}


def with_transformer(name: str, **changes: Any) -> dict[str, Any]:
    config = transformer_config(**changes)
    config["params"]["transformer_config"]["target"] = f"{__name__}.{name}"
    return config


# ---------------------------------------------------------------------- transformers


@pytest.mark.parametrize("name", ["Own", "Configured", "Sevens", "OwnBlocks"])
def test_transformers_of_ones_own_train_and_sample(name: str, tmp_path: Path) -> None:
    config = with_transformer(name, pkeep=0.5, cond_drop=0.5)
    if name == "Configured":
        config["params"]["transformer_config"]["params"] = {"tokens": 23, "block_size": 16}
    model = build(config)
    before = {name: p.clone() for name, p in model.transformer.named_parameters()}
    fit(model, COLUMNS, tmp_path)
    changed = {n for n, p in model.transformer.named_parameters() if not torch.equal(p, before[n])}
    assert any("head.weight" in n for n in changed) and model.vocab_size == 23
    pictures = model.eval().log_images(COLUMNS)
    assert pictures["samples_nopix"].shape == (4, 3, 8, 8)
    guided = SampleSettings(temperature=0, guidance=2.0)
    (sampled,) = sample_images(model, requests_for_labels(model, [3], 1), guided)
    assert len(sampled.indices) == 16


@pytest.mark.parametrize("shape", [None, (4, 6)])
@pytest.mark.parametrize("pkeep", [1.0, 0.0])
def test_engines_hear_a_subclass(shape: tuple[int, int] | None, pkeep: float) -> None:
    model = tiny_model(with_transformer("Sevens", pkeep=pkeep))
    known = torch.full(shape or (4, 4), -1)
    known[1, 2:] = 4
    requests = [Request(n, (3,), 3, known=known) for n in range(3)]
    for sample in sample_images(model, requests, batch_size=2, shape=shape, dtype=torch.bfloat16):
        grid = sample.indices.view(known.shape)
        assert torch.equal(grid, torch.where(known < 0, 7, known))


def test_model_sample_hears_a_subclass() -> None:
    model, start = tiny_model(with_transformer("Sevens")), torch.tensor([[1], [2]])
    assert model.sample(start[:, :0], start, 5).eq(7).all()


def test_a_run_is_loaded_and_sampled(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", with_transformer("Own"))
    assert isinstance(taming.load(run).transformer, Own)
    flags = ["-n", "2", "--classes", "3", "--batch_size", "2", "--device", "cpu", "--top_k", "9"]
    sample_fast(["-r", str(run), "-o", str(tmp_path / "out"), *flags])
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (own("Silent", tokens=23, block_size=16), "Silent must tell how many tokens it has, by a"),
        (own("Endless"), r"Endless must have a method get_block_size\(\), which"),
        (own("Nothing"), "Nothing must be a torch.nn.Module, whose weights are trained"),
        (own("Own", vocab_size=19, block_size=16), "vocab_size is 19, too small for the 20 codes"),
    ],
)
def test_what_a_transformer_lacks_is_said(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(transformer_config(transformer_config=config))


def test_too_few_logits_are_refused() -> None:
    model = build(with_transformer("Narrow"))
    with pytest.raises(UserError, match=r"Narrow.forward must return \(logits \[2, 16, 23\] of fl"):
        model.shared_step({name: column[:2] for name, column in COLUMNS.items()})


# ---------------------------------------------------------------------- stages and permuters


class PlainStage:
    """A condition stage as the original's own are: no module."""

    modes = 0

    def eval(self) -> PlainStage:
        type(self).modes += 1
        return self

    def encode(self, c: Tensor) -> Encoding:
        return c, None, (None, None, c.long().reshape(len(c), 1))

    def decode(self, c: Tensor) -> Tensor:
        return c


class NoEncode(nn.Module): ...


class PlainOrder:
    def __call__(self, x: Tensor, reverse: bool = False) -> Tensor:
        return x.flip(1)


class NoOrder(AbstractPermuter): ...


def test_stages_and_permuters_need_not_be_modules(tmp_path: Path) -> None:
    PlainStage.modes = 0
    stage, order = own("PlainStage"), own("PlainOrder")
    model = build(transformer_config(cond_stage_config=stage, permuter_config=order))
    fit(model, COLUMNS, tmp_path)
    assert type(model.cond_stage_model) is PlainStage and PlainStage.modes == 1
    assert model.eval().log_images(COLUMNS)["samples_half"].shape == (4, 3, 8, 8)
    (sampled,) = sample_images(model, [Request(0, (3,))])
    indices = model.encode_to_z(sampled.image[None])[1]
    assert torch.equal(
        indices, model.first_stage_model.encode_to_indices(sampled.image[None]).flatten(1).flip(1)
    )
    assert (describe_condition(model) or {})["weights"] is None
    loaded = taming.load(tiny_run(tmp_path / "run", transformer_config(cond_stage_config=stage)))
    assert type(loaded.cond_stage_model) is PlainStage


@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        ("cond_stage_config", "NoEncode", r"NoEncode must have a method encode\(c\), which"),
        ("permuter_config", "NoOrder", "NoOrder must be a function of indices"),
        ("permuter_config", "PlainStage", "PlainStage must be a function of indices"),
        ("first_stage_config", "PlainStage", "PlainStage is no first stage with a codebook: "),
    ],
)
def test_what_a_part_lacks_is_said(part: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"{part}: .*{message}"):
        build(transformer_config(**{part: own(name)}))


# ---------------------------------------------------------------------- quantizers


class Published(VectorQuantizer2):
    def forward(self, z, temp=None, rescale_logits=False, return_logits=False):  # type: ignore[no-untyped-def, override]
        return super().forward(z, temp, rescale_logits, return_logits)


def test_quantizers_take_the_published_arguments(tmp_path: Path) -> None:
    config = own("Published", n_e=12, e_dim=4, beta=0.25)
    model = build(first_stage_config(quantizer_config=config, n_embed=None, embed_dim=None))
    fit(model, {"image": images()}, tmp_path)
    z = torch.randn(1, 4, 2, 2)
    assert torch.equal(model.quantize(z, temp=1.0)[0], model.quantize(z)[0])
    for named in ({"temp": 0.5}, {"rescale_logits": True}, {"return_logits": True}):
        with pytest.raises(UserError, match="Published takes the nearest code, without temp"):
            model.quantize(z, **named)


# ---------------------------------------------------------------------- precisions

FIRST_STAGES = {
    "VQModel": first_stage_config(),
    "EMAVQ": first_stage_config(VQGAN + "EMAVQ"),
    "GumbelVQ": first_stage_config(
        VQGAN + "GumbelVQ", temperature_scheduler_config=cosine_config()
    ),
    "VQSegmentationModel": SEGMENTATION,
    "revived": first_stage_config(revive_after=1),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stages_compute_in_the_precision_of_their_weights(
    name: str, dtype: torch.dtype
) -> None:
    config = FIRST_STAGES[name]
    exact, model = (build(config).eval() for _ in range(2))
    model.to(dtype)
    x = torch.rand(2, model.channels, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    codes, loss, (_, _, indices) = model.encode(x)
    assert codes.dtype == model.decode(codes).dtype == model(x)[0].dtype == dtype
    assert loss.dtype in (torch.float32, dtype) and loss.isfinite()
    expected = exact.encode_to_indices(x.float())
    agree = (indices.reshape(expected.shape) == expected).float().mean()
    assert agree > (0.999 if dtype == torch.float64 else 0.8)
    rec, loss = model.train()(x)
    (rec.float().mean() + loss).backward()


def test_what_decides_has_more_digits_than_the_weights() -> None:
    quantizer = VectorQuantizer2(2, 1, 0.25).bfloat16()
    quantizer.embedding.weight.data = torch.tensor([[256.0], [258.0]], dtype=torch.bfloat16)
    _, _, (_, _, indices) = quantizer(torch.tensor([256.5, 257.5]).view(1, 1, 1, 2))
    assert indices.tolist() == [0, 1]
    near = torch.tensor([1.0, 1.0 + 1e-6], dtype=torch.float64)
    quantizer.embedding.weight.data = near[:, None]
    assert quantizer(near.view(1, 1, 1, 2))[2][2].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_transformers_compute_in_the_precision_of_their_weights(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    x, c = COLUMNS["image"][:2].permute(0, 3, 1, 2).to(dtype), COLUMNS["class_label"][:2]
    logits, target = model(x, c)
    assert logits.dtype == dtype and target.shape == (2, 16)
    (codes, z), (_, c_indices) = model.encode_to_z(x), model.encode_to_c(c)
    indices = model.sample(z[:, :4], c_indices, 12, sample=True, top_k=5)
    assert model.decode_to_img(indices, codes.shape).dtype == dtype

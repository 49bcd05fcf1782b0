"""The protocols of stages: which classes satisfy them, checked by mypy and by calling everything.

`make lint` has mypy read this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from taming.models.dalle import DalleVAE
from taming.models.dummy_cond_stage import DummyCondStage
from taming.models.first_stage import (
    ConditionStage,
    DecodingStage,
    FirstStage,
    condition_of,
    index_count,
)
from taming.models.vqgan import EMAVQ, GumbelVQ, VQModel, VQNoDiscModel, VQSegmentationModel
from taming.modules.misc.coord import CoordStage
from taming.modules.transformer.kmeans import KMeans
from taming.modules.util import ConditionKind, Labelator, SOSProvider
from taming.modules.vqvae.codebook import CodeTable, Quantizer
from taming.modules.vqvae.ema import EMAVectorQuantizer
from taming.modules.vqvae.gumbel import GumbelQuantize
from taming.modules.vqvae.nearest import VectorQuantizer, VectorQuantizer2
from tests.kit.models import (
    DALLE,
    SEGMENTATION,
    VQGAN,
    build,
    cosine_config,
    first_stage_config,
)
from tests.support import GOLDEN

if TYPE_CHECKING:  # mypy refuses what does not satisfy the protocol

    def _first_stages(
        vq: VQModel,
        segmentation: VQSegmentationModel,
        no_discriminator: VQNoDiscModel,
        ema: EMAVQ,
        gumbel: GumbelVQ,
        dalle: DalleVAE,
        kmeans: KMeans,
    ) -> list[FirstStage]:
        return [vq, segmentation, no_discriminator, ema, gumbel, dalle, kmeans]

    def _condition_stages(
        classes: Labelator, nothing: SOSProvider, tokens: DummyCondStage, images: VQModel
    ) -> list[ConditionStage]:
        return [classes, nothing, tokens, images]

    def _coordinates(stage: CoordStage) -> tuple[ConditionStage, DecodingStage]:
        return stage, stage

    def _quantizers(
        nearest: VectorQuantizer2,
        first: VectorQuantizer,
        ema: EMAVectorQuantizer,
        gumbel: GumbelQuantize,
    ) -> list[Quantizer]:
        return [nearest, first, ema, gumbel]

    def _tables(colors: KMeans, quantizer: Quantizer) -> list[CodeTable]:
        return [colors, quantizer]


KMEANS = {
    "target": "taming.modules.transformer.mingpt.KMeans",
    "params": {"ncluster": 12, "resolution": 16},
}
GUMBEL: dict[str, Any] = {"temperature_scheduler_config": cosine_config()}
FIRST_STAGES: dict[str, tuple[dict[str, Any], type]] = {
    "vq": (first_stage_config(), VQModel),
    "no discriminator": (first_stage_config(VQGAN + "VQNoDiscModel"), VQNoDiscModel),
    "ema": (first_stage_config(VQGAN + "EMAVQ"), EMAVQ),
    "gumbel": (first_stage_config(VQGAN + "GumbelVQ", **GUMBEL), GumbelVQ),
    "segmentation": (SEGMENTATION, VQSegmentationModel),
    "depth": (first_stage_config(channels=1), VQModel),
    "dalle": (DALLE, DalleVAE),
    "kmeans": (KMEANS, KMeans),
}


@pytest.mark.parametrize("name", FIRST_STAGES)
@torch.no_grad()
def test_first_stages_do_all_that_the_protocol_lists(name: str) -> None:
    config, kind = FIRST_STAGES[name]
    stage: FirstStage = build(config).eval().requires_grad_(False).to("cpu")
    assert stage.__class__ is kind
    assert not stage.training and not any(p.requires_grad for p in stage.parameters())
    assert stage.reads_labels == (name == "segmentation")
    factor, channels = stage.downsampling_factor, stage.channels
    assert channels == {"segmentation": 5, "depth": 1}.get(name, 3)
    latent = stage.latent_shape()
    assert latent == (stage.quantize.e_dim, 16 // factor, 16 // factor)

    images = torch.rand(2, channels, 3 * factor * 8, 16) * 2 - 1  # not square
    rows, columns = images.shape[2] // factor, 16 // factor
    quant, _, (_, _, indices) = stage.encode(images)
    assert quant.shape == (2, latent[0], rows, columns)
    assert indices.numel() == 2 * rows * columns
    assert stage.decode(quant).shape == images.shape
    grid = stage.encode_to_indices(images)
    assert grid.shape == (2, rows, columns) and grid.dtype == torch.int64
    assert torch.equal(grid.flatten(), indices.flatten())
    assert grid.min() >= 0 and grid.max() < index_count(stage) == stage.quantize.n_e
    assert stage.decode_indices(grid).shape == images.shape
    square = grid[:, :columns]
    assert torch.equal(stage.decode_indices(square.flatten(1)), stage.decode_indices(square))
    entry = stage.quantize.get_codebook_entry(grid)
    assert torch.equal(entry.permute(0, 3, 1, 2), _looked_up(stage, grid))


def _looked_up(stage: FirstStage, grid: Tensor) -> Tensor:
    shape = (*grid.shape, stage.quantize.e_dim)
    return stage.quantize.get_codebook_entry(grid.flatten(), shape)


def test_remapped_codes_give_fewer_indices() -> None:
    remap = str(GOLDEN / "used.npy")
    stage = build(first_stage_config(n_embed=40, remap=remap))
    assert index_count(stage) == len(stage.quantize.used) < stage.quantize.n_e == 40


CONDITIONS: dict[str, tuple[Callable[[], Any], Tensor, int]] = {
    # stage, conditions of two images, tokens of each
    "class": (lambda: Labelator(7), torch.tensor([0, 6]), 1),
    "none": (lambda: SOSProvider(3), torch.zeros(2, 16, 16, 3), 1),
    "tokens": (lambda: DummyCondStage("objects"), torch.arange(8).reshape(2, 4), 4),
    "coordinates": (lambda: CoordStage(10, 4), torch.rand(2, 1, 16, 16), 16),
    "image": (lambda: build(first_stage_config()).eval(), torch.rand(2, 3, 16, 16), 64),
}


@pytest.mark.parametrize("kind", CONDITIONS)
@torch.no_grad()
def test_condition_stages_do_all_that_the_protocol_lists(kind: ConditionKind) -> None:
    make, conditions, length = CONDITIONS[kind]
    stage = make()
    assert stage.kind == kind and stage.n_classes == (7 if kind == "class" else None)
    assert condition_of(stage) == (kind, stage.n_classes)
    codes, _, (_, _, indices) = stage.encode(conditions)
    assert indices.dtype == torch.int64 and indices.numel() == 2 * length
    if kind in ("image", "coordinates"):
        assert isinstance(stage, DecodingStage)
        assert stage.decode(codes).shape == conditions.shape


class WithClasses(nn.Module):
    n_classes = 4


class WithImages(nn.Module):
    def decode(self, quant: Tensor) -> Tensor:
        return quant


class WithKind(WithImages):
    kind: ConditionKind = "coordinates"


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (WithClasses(), ("class", 4)),
        (WithImages(), ("image", None)),
        (WithKind(), ("coordinates", None)),
        (nn.Module(), ("tokens", None)),
    ],
)
def test_stages_without_a_kind_are_recognized_by_what_they_have(
    stage: nn.Module, expected: tuple[str, int | None]
) -> None:
    assert condition_of(stage) == expected

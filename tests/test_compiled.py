"""What torch.compile takes as one graph, whole: a break costs a GPU its lead over the host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taming.config import instantiate_from_config
from taming.modules.discriminator.model import NLayerDiscriminator
from taming.modules.losses.lpips import LPIPS
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from taming.modules.transformer.decoding import CachedDecoder
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.kmeans import KMeans
from taming.modules.vqvae.quantize import EMAVectorQuantizer, GumbelQuantize, VectorQuantizer2
from tests.kit.models import (
    DALLE,
    SEGMENTATION,
    VQGAN,
    cosine_config,
    first_stage_config,
    transformer_config,
)

SCHEDULE = {"temperature_scheduler_config": cosine_config()}
MODELS = {
    "VQModel": first_stage_config(),
    "EMAVQ": first_stage_config(VQGAN + "EMAVQ", revive_after=2),
    "GumbelVQ": first_stage_config(VQGAN + "GumbelVQ", **SCHEDULE),
    "VQSegmentationModel": SEGMENTATION,
    "DalleVAE": DALLE,
}
INDICES = torch.arange(12).view(2, 6)


def images(side: int = 16, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, channels, side, side, generator=generator) * 2 - 1


def model(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return instantiate_from_config(copy.deepcopy(config)).eval()


def decoder_step() -> Callable[..., Any]:
    decoder = CachedDecoder(gpt(), 2, 8, static=True)
    decoder.prefill(INDICES[:, :4])
    position = decoder._position.clone()

    @torch.inference_mode()
    def step() -> Tensor:
        decoder._position.copy_(position)
        return decoder._whole_step()

    return step


def gpt(**options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(20, 24, 2, 2, 16, **options).eval()


def lpips() -> LPIPS:
    network = LPIPS()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    assert network.ready
    return network


def game() -> VQLPIPSWithDiscriminator:
    return VQLPIPSWithDiscriminator(0, disc_ndf=8, disc_num_layers=1, perceptual_weight=0.0)


def generator_loss() -> Callable[..., Any]:
    loss = game()

    @torch.no_grad()
    def evaluate(x: Tensor, outputs: Tensor) -> Any:
        return loss.generator_loss(x, outputs, x.mean(), 5, last_layer=x)

    return evaluate


def colors() -> Callable[..., Any]:
    stage = KMeans(8, 3, resolution=8)
    stage.encode(images(8))
    return stage.encode


def transformer_step(**changes: Any) -> Callable[..., Any]:
    step: Callable[..., Any] = model(transformer_config(**changes)).shared_step
    return step


BATCH = {"image": images(8).permute(0, 2, 3, 1), "class_label": torch.arange(2)}
MAPS = {"cond_stage_config": "__is_first_stage__", "cond_stage_key": "image"}
Made = Callable[[], Callable[..., Any]]
QUICK: dict[str, tuple[Made, tuple[Any, ...]]] = {
    "VectorQuantizer2": (lambda: VectorQuantizer2(16, 3, 0.25), (images(8),)),
    "a step of the decoder": (decoder_step, ()),
}
SLOW: dict[str, tuple[Made, tuple[Any, ...]]] = {
    "EMAVectorQuantizer": (lambda: EMAVectorQuantizer(16, 3, 0.25).eval(), (images(8),)),
    "GumbelQuantize": (lambda: GumbelQuantize(3, 4, 16).eval(), (images(8),)),
    "colors": (colors, (images(8),)),
    "GPT": (gpt, (INDICES,)),
    "GPT with a condition": (lambda: gpt(n_unmasked=4), (INDICES,)),
    "discriminator": (lambda: NLayerDiscriminator(3, 8, 1).eval(), (images(),)),
    "discriminator's loss": (lambda: game().eval().discriminator_loss, (images(), images(), 5)),
    "generator's loss": (generator_loss, (images(), images())),
    "LPIPS": (lpips, (images(32), images(32).flip(0))),
    "step with classes": (transformer_step, (BATCH,)),
    "step with images": (
        lambda: transformer_step(transformer_config=gpt_of(40), **MAPS),
        (BATCH,),
    ),
}
for name, config in MODELS.items():
    channels = 5 if name == "VQSegmentationModel" else 3
    SLOW[name] = (lambda config=config: model(config), (images(16, channels),))  # type: ignore[misc]
    SLOW[f"indices of {name}"] = (  # type: ignore[assignment]
        lambda config=config: model(config).encode_to_indices,
        (images(16, channels),),
    )


def gpt_of(block_size: int) -> dict[str, Any]:
    config: dict[str, Any] = transformer_config({"block_size": block_size})
    whole: dict[str, Any] = config["params"]["transformer_config"]
    return whole


def check(case: tuple[Made, tuple[Any, ...]], backend: str) -> None:
    torch.compiler.reset()
    (make, arguments), options = case, {"fullgraph": True, "backend": backend}
    function = make()
    expected = function(*arguments)
    compiled: Any = torch.compile(function, **options)  # type: ignore[call-overload]
    torch.testing.assert_close(compiled(*arguments), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", QUICK)
def test_one_graph_holds_all_of_it(name: str) -> None:
    check(QUICK[name], "eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_one_graph_holds_all_of_larger_parts(name: str) -> None:
    check(SLOW[name], "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VQModel", "GPT", "step with classes"])
def test_kernels_of_one_graph(name: str) -> None:
    check(SLOW[name], "inductor")


@pytest.mark.slow
def test_training_steps_have_one_graph() -> None:
    """Forward and backward."""
    one = model(transformer_config()).train()
    torch.compiler.reset()
    loss = torch.compile(one.shared_step, fullgraph=True, backend="aot_eager")(BATCH)
    loss.backward()
    assert all(p.grad is not None for p in one.transformer.parameters())

"""What torch.compile takes as one graph, whole: a break costs a GPU its lead over the host.

Modules alone are in `tests/test_parts.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from taming.config import instantiate_from_config
from taming.models.distillation import soft_loss
from taming.modules.transformer.decoding import CachedDecoder
from taming.modules.vqvae.quantize import VectorQuantizer2
from tests.kit.models import first_stage_config, transformer_config
from tests.kit.parts import CACHED
from tests.kit.parts import gpt as small_gpt

INDICES = torch.arange(12).view(2, 6)


def images(side: int = 16, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, channels, side, side, generator=generator) * 2 - 1


def model(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return instantiate_from_config(copy.deepcopy(config)).eval()


def decoder_step(**options: Any) -> Callable[..., Any]:
    torch.manual_seed(0)
    decoder = CachedDecoder(small_gpt(**options).eval(), 2, 8, static=True)
    decoder.prefill(INDICES[:, :4])
    position = decoder._position.clone()

    @torch.inference_mode()
    def step() -> Tensor:
        decoder._position.copy_(position)
        return decoder._whole_step()

    return step


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
    "step with classes": (transformer_step, (BATCH,)),
    "step with images": (
        lambda: transformer_step(transformer_config=gpt_of(40), **MAPS),
        (BATCH,),
    ),
    "soft loss": (lambda: soft_loss, (torch.eye(6).view(2, 3, 6), torch.ones(2, 3, 6))),
    "VQModel": (lambda: model(first_stage_config()), (images(),)),
    "GPT": (lambda: small_gpt().eval(), (INDICES,)),
}


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
@pytest.mark.parametrize("name", CACHED)
def test_one_graph_holds_a_step_of_each_decoder(name: str) -> None:
    check((partial(decoder_step, **CACHED[name]), ()), "eager")


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

"""The table of docs/scaling.md: its figures against measured memory, and in the document."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from taming.modules.transformer.gpt import GPT
from taming.modules.vqvae.cosine import CosineQuantizer
from taming.modules.vqvae.ibq import IBQ
from taming.modules.vqvae.quantize import VectorQuantizer2
from tests.kit.models import build, first_stage_config
from tests.support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import footprint

sys.path.pop(0)


def small_gpt() -> tuple[Any, Callable[[int], None]]:
    model = GPT(64, 128, n_layer=3, n_head=2, n_embd=64)
    return model, footprint.transformer_step(model)


def small_first_stage() -> tuple[Any, Callable[[int], None]]:
    model = build(first_stage_config()).train()
    return model, footprint.first_stage_step(model, 16)


def measured_peak(step: Callable[[int], None], batch_size: int) -> int:
    """The most bytes that torch's allocator gave out at one time."""
    step(1)  # gradients are there
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step(batch_size)
    events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
    sizes = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]")
    live = peak = 0
    for _, nbytes in sizes:
        live += nbytes
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    "make", [small_gpt, pytest.param(small_first_stage, marks=pytest.mark.slow)]
)
def test_computed_activations_are_the_measured_ones(make: Callable[[], Any]) -> None:
    """Within what kernels take for themselves."""
    torch.manual_seed(0)
    _, step = make()
    real = measured_peak(step, 12) - measured_peak(step, 4)
    with footprint.without_numbers():
        model, step = make()
        few, many = (footprint.measured(step, model, size) for size in (4, 12))
    assert many.peak - few.peak == pytest.approx(real, rel=0.1)


def test_arithmetic_is_that_of_six_flop_a_weight_and_token() -> None:
    """Of matrix products, forward and twice as much backward; attention comes on top."""
    model, step = small_gpt()
    weights = {name: p for name, p in model.named_parameters() if p.dim() == 2}
    matrices = sum(p.numel() for name, p in weights.items() if name != "tok_emb.weight")
    with footprint.without_numbers():
        model, step = small_gpt()
        counted = footprint.measured(step, model, 1).flop
    # Two products forward, five backward (one of them anew), in each of three layers.
    attention = 3 * 7 * 2 * 128 * 128 * 64
    assert counted == 6 * matrices * 128 + attention


# ---------------------------------------------------------------------- the document


def documented() -> dict[str, str]:
    """The rows of the table, by their names."""
    text = footprint.DOCUMENT.read_text(encoding="utf-8")
    made = text.partition(footprint.BEGIN)[2].partition(footprint.END)[0]
    rows = [line for line in made.splitlines() if line.startswith("| `")]
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


def test_every_config_is_in_the_table() -> None:
    names = [name for row in documented() for name in re.findall("`(.+?)`", row)]
    assert sorted(names) == [path.stem for path in footprint.configs()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet_vqgan", "cin_transformer"])
def test_the_table_is_what_the_script_computes(name: str) -> None:
    [path] = [path for path in footprint.configs() if path.stem == name]
    [row] = footprint.rows_of([path])
    assert footprint.table([row]).splitlines()[-1] == documented()[f"`{name}`"]


def test_the_text_says_the_measured_shares() -> None:
    text = " ".join(footprint.DOCUMENT.read_text(encoding="utf-8").split())
    first, second = (f"{footprint.utilization(kind):.0%}" for kind in footprint.MEASURED)
    shares = re.search(r"\*\*computed\*\* for (\d+) % \(first stages\) and (\d+) %", text)
    assert shares is not None and [f"{share}%" for share in shares.groups()] == [first, second]


@pytest.mark.parametrize(
    "quantizer",
    [
        lambda: VectorQuantizer2(16_384, 8, 0.25, entropy_weight=0.1),
        lambda: CosineQuantizer(16_384, 8, entropy_weight=0.1),
        lambda: IBQ(16_384, 8),
    ],
)
def test_entropies_of_large_codebooks_take_bounded_memory(quantizer: Callable[[], Any]) -> None:
    """Forward and backward: as many latents as would otherwise be two parts, or many more."""
    with footprint.without_numbers():
        model = quantizer().train()

        def step(batch_size: int) -> None:
            latents = torch.zeros(batch_size, 8, 16, 16, requires_grad=True)
            loss = model(latents)[1]
            loss.backward()

        assert 1e8 < footprint.measured(step, model, 32).peak < 1e9

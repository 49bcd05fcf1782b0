from __future__ import annotations

from typing import Any

import pytest
import torch

from taming.errors import UserError
from taming.sampling import SampleSettings, uniforms


def test_numbers_depend_on_seed_and_sample_alone() -> None:
    together = uniforms(3, [5, 6, 7], 40)
    assert together.shape == (3, 40)
    assert together.dtype == torch.float32
    assert torch.equal(uniforms(3, [7, 5], 40), together[[2, 0]])
    assert torch.equal(uniforms(3, [6], 10), together[1:2, :10])
    assert not torch.equal(uniforms(4, [6], 40), together[1:2])
    assert not torch.equal(uniforms(2**32 + 3, [6], 40), together[1:2])
    assert len({uniforms(seed, [6], 1).item() for seed in range(-20, 200)}) == 220


def test_numbers_are_those_of_every_version() -> None:
    expected = torch.tensor([[0.0115, 0.2415], [0.4341, 0.5097]])
    torch.testing.assert_close(uniforms(0, [0, 2**32 + 1], 2), expected, atol=5e-5, rtol=0)


def test_numbers_are_uniform() -> None:
    numbers = uniforms(-1, range(500), 64)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    share = numbers.histc(10, 0, 1) / numbers.numel()
    assert (share - 0.1).abs().max() < 0.01
    assert torch.corrcoef(numbers[:, :2].T)[0, 1].abs() < 0.15


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"guidance": -1.0}, "guidance"),
        ({"guidance": float("inf")}, "guidance"),
        ({"guidance_schedule": "square"}, "constant, linear, cosine, not 'square'"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        SampleSettings(**settings)


def test_temperature_zero_is_greedy() -> None:
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    picked = SampleSettings(temperature=0).pick(logits, torch.full((6,), 0.999))
    assert torch.equal(picked, logits.argmax(1))


def test_filters_apply_to_what_is_picked() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    late = torch.tensor([0.999])
    assert SampleSettings().pick(logits, late).item() == 3
    assert SampleSettings(top_k=3).pick(logits, late).item() == 2
    assert SampleSettings(temperature=0.02).pick(logits, late).item() == 0
    assert SampleSettings(top_k=1).pick(logits, late).item() == 0
    assert SampleSettings(top_k=3, top_p=0.6).pick(logits, late).item() == 1


def test_guidance_schedules() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.0, 4.0]])  # with the condition, without it
    assert SampleSettings().guide(logits, 0.5) is logits
    free = SampleSettings(guidance=0.0).guide(logits, 0.5)
    torch.testing.assert_close(free, torch.tensor([[0.0, 4.0]]))
    for schedule, quarter, halfway, start in (
        ("constant", [3.0, -2.0], [3.0, -2.0], [3.0, -2.0]),
        ("linear", [1.5, 1.0], [2.0, 0.0], [1.0, 2.0]),
        ("cosine", [2 - 0.5**0.5, 2**0.5], [2.0, 0.0], [1.0, 2.0]),
    ):
        settings = SampleSettings(guidance=3.0, guidance_schedule=schedule)
        torch.testing.assert_close(settings.guide(logits, 0.25), torch.tensor([quarter]))
        torch.testing.assert_close(settings.guide(logits, 0.5), torch.tensor([halfway]))
        torch.testing.assert_close(settings.guide(logits, 0.0), torch.tensor([start]))

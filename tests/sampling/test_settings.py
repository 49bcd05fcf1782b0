from __future__ import annotations

from typing import Any

import pytest
import torch

from taming.errors import UserError
from taming.sampling import SampleSettings, uniforms
from taming.sampling.settings import parse_top_k


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
        ({"top_k": (100, 0)}, "top_k must be at least 1, not 0"),
        ({"top_k": ()}, "top_k"),
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


MIXED = SampleSettings(top_k=(100, 200, 250))


def test_lists_of_k() -> None:
    assert parse_top_k("250") == 250 and parse_top_k(" 100, 200,100,") == (100, 200)
    assert SampleSettings(top_k=[3, 5]) == SampleSettings(top_k=(3, 5))  # type: ignore[arg-type]
    assert MIXED.describe()["top_k"] == [100, 200, 250]
    assert SampleSettings(top_k=3).describe()["top_k"] == 3
    for wrong in ("", "a", "1.5", "100,-2"):
        with pytest.raises(UserError):
            parse_top_k(wrong)
    names = [SampleSettings(top_k=k).top_k_name for k in (None, 7, (7, 9), tuple(range(1, 99)))]
    assert names[:3] == ["None", "7", "7-9"]
    assert names[3].startswith("98-values-") and len(names[3]) == 18


def test_a_samples_k_is_of_seed_and_number_alone() -> None:
    together = MIXED.own_top_k(3, range(100))
    assert together is not None
    assert [MIXED.own_top_k(3, [n]) for n in (99, 0, 41)] == [[together[n]] for n in (99, 0, 41)]
    assert MIXED.own_top_k(4, range(100)) != together
    assert SampleSettings(top_k=250).own_top_k(3, [0, 1]) is None
    # Those of every version.
    assert MIXED.own_top_k(0, range(12)) == [200, 100, *[250] * 5, 200, 100, 100, 250, 100]


def test_every_k_is_as_likely_as_the_others() -> None:
    ten = (100, 200, 250, 300, 350, 400, 500, 600, 800, 973)
    drawn = SampleSettings(top_k=ten).own_top_k(1, range(20_000))
    assert drawn is not None and set(drawn) == set(ten)
    counts = torch.tensor([drawn.count(k) for k in ten], dtype=torch.float64)
    assert ((counts - 2000).square() / 2000).sum() < 27.9  # chi-squared, 9 degrees: p = 0.001
    # ... whatever the first random number of the sample's tokens is.
    first = uniforms(1, range(20_000), 1)[:, 0]
    for k in ten:
        of_k = first[torch.tensor([own == k for own in drawn])]
        assert abs(of_k.mean().item() - 0.5) < 0.03


def test_rows_are_filtered_by_their_own_k() -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    uniform, ks = torch.rand(5, generator=torch.Generator().manual_seed(1)), [100, 250, 200, 100, 1]
    for top_p in (1.0, 0.8):
        mixed = SampleSettings(top_k=(1, 100, 200, 250), top_p=top_p)
        alone = [
            SampleSettings(top_k=k, top_p=top_p).pick(logits[n : n + 1], uniform[n : n + 1])
            for n, k in enumerate(ks)
        ]
        assert torch.equal(mixed.pick(logits, uniform, torch.tensor(ks)), torch.cat(alone))

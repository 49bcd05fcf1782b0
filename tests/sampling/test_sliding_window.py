from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from taming.errors import UserError
from taming.modules.transformer.mingpt import GPT
from taming.sampling import sample_sliding_window, sliding_window, uniforms, windows
from taming.sampling.settings import SampleSettings
from tests.support import fill_by_name, load_golden


def small_gpt(block_size: int = 31, **options: Any) -> GPT:
    gpt = GPT(30, block_size, n_layer=2, n_head=2, n_embd=16, **options)
    fill_by_name(gpt)
    return gpt.eval()


@torch.no_grad()
def plain_loop(
    gpt: GPT, cond: Tensor, shape: tuple[int, int], window: int, uniform: Tensor | None = None
) -> Tensor:
    """The contract's definition, one whole window at a time."""
    height, width = shape
    h, w = min(window, height), min(window, width)
    grid = torch.zeros(len(cond), height, width, dtype=torch.long)
    settings = SampleSettings(temperature=0 if uniform is None else 1)
    numbers = torch.zeros(len(cond), height * width) if uniform is None else uniform
    for i in range(height):
        for j in range(width):
            local_i = i if i <= h // 2 else h - (height - i) if height - i < h - h // 2 else h // 2
            local_j = j if j <= w // 2 else w - (width - j) if width - j < w - w // 2 else w // 2
            area = (
                slice(None),
                slice(i - local_i, i - local_i + h),
                slice(j - local_j, j - local_j + w),
            )
            before = cond[area].flatten(1) if cond.dim() == 3 else cond
            seen = torch.cat((before, grid[area].flatten(1)[:, : local_i * w + local_j]), 1)
            logits = gpt(seen)[0][:, -1]
            grid[:, i, j] = settings.pick(logits, numbers[:, i * width + j])
    return grid


def condition(kind: str, shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = shape if kind == "map" else (3,)
    return torch.randint(30, (2, *size), generator=generator)


@pytest.mark.parametrize("name", ["sliding_16x16", "sliding_18x21"])
def test_golden(name: str) -> None:
    golden, spec = load_golden(name)
    gpt = GPT(**spec["gpt"]).eval()
    fill_by_name(gpt)
    c, expected = golden["c"], golden["greedy"]
    sampled = sample_sliding_window(gpt, c, tuple(c.shape[1:]), spec["window"], temperature=0)
    assert torch.equal(sampled, expected)
    assert not sampled.is_inference()


SHAPES = [(4, 4), (4, 9), (9, 4), (7, 10), (5, 5), (13, 12), (2, 6), (6, 3), (1, 1)]


@pytest.mark.parametrize("kind", ["map", "prefix"])
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_is_the_plain_loops(kind: str, shape: tuple[int, int]) -> None:
    gpt, cond = small_gpt(), condition(kind, shape)
    sampled = sample_sliding_window(gpt, cond, shape, 4, temperature=0)
    assert torch.equal(sampled, plain_loop(gpt, cond, shape, 4))


def test_models_of_masked_codes_are_refused() -> None:
    gpt, cond = small_gpt(attention="full"), condition("prefix", (4, 4))
    with pytest.raises(UserError, match="attention: full fills in masked codes"):
        sample_sliding_window(gpt, cond, (4, 4), 4)


def count_caches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of the caches that are made from now on."""
    made: list[tuple[int, int]] = []
    original = sliding_window.Weights.new_cache

    def new_cache(self: Any, rows: int, length: int) -> Tensor:
        made.append((rows, length))
        return original(self, rows, length)

    monkeypatch.setattr(sliding_window.Weights, "new_cache", new_cache)
    return made


# How many fit into the memory, and are made: a row's own caches do not count.
@pytest.mark.parametrize(("limit", "count"), [(0, 2), (5, 6), (10, 8)])
def test_caches_that_do_not_fit_change_nothing(
    monkeypatch: pytest.MonkeyPatch, limit: int, count: int
) -> None:
    gpt, cond, made = small_gpt(), condition("map", (9, 11)), count_caches(monkeypatch)
    monkeypatch.setattr(windows, "CACHE_BYTES", limit * 2 * 2 * 2 * 31 * 16 * 4)
    sampled = sample_sliding_window(gpt, cond, (9, 11), 4, temperature=0)
    assert torch.equal(sampled, plain_loop(gpt, cond, (9, 11), 4))
    assert made == [(2, 31)] * count


@pytest.mark.parametrize("n_unmasked", [3, 16, 24])
def test_positions_that_see_each_other(n_unmasked: int) -> None:
    gpt, cond = small_gpt(n_unmasked=n_unmasked), condition("map", (6, 7))
    sampled = sample_sliding_window(gpt, cond, (6, 7), 4, temperature=0)
    assert torch.equal(sampled, plain_loop(gpt, cond, (6, 7), 4))


def test_caches_are_freed_for_the_next_windows_and_the_next_grid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpt, cond, made = small_gpt(), condition("map", (12, 4)), count_caches(monkeypatch)
    sampler = sliding_window.SlidingWindow(
        sliding_window.Weights(gpt), cond, sliding_window.Layout((12, 4), (4, 4))
    )
    grids = [sampler.sample(lambda logits, row, column: logits.argmax(1)) for _ in range(2)]
    assert torch.equal(*grids) and torch.equal(grids[0], plain_loop(gpt, cond, (12, 4), 4))
    assert len(made) == 1  # windows come one after the other


def test_odd_and_oblong_windows() -> None:
    gpt, cond = small_gpt(64), condition("map", (8, 11))
    sampled = sample_sliding_window(gpt, cond, (8, 11), 5, temperature=0)
    assert torch.equal(sampled, plain_loop(gpt, cond, (8, 11), 5))
    oblong = sample_sliding_window(gpt, cond, (8, 11), (8, 4), temperature=0)
    assert oblong.shape == (2, 8, 11)
    tall = sample_sliding_window(gpt, cond[:, :, :4], (8, 4), (8, 4), temperature=0)
    assert torch.equal(tall, plain_loop(gpt, cond[:, :, :4], (8, 4), 8))


def test_a_seed_gives_the_same_images_in_any_batch() -> None:
    gpt, cond = small_gpt(), condition("prefix", (6, 6))
    together = sample_sliding_window(gpt, cond, (6, 6), 4, seed=5)
    numbers = uniforms(5, [0, 1], 36)
    assert torch.equal(together, plain_loop(gpt, cond, (6, 6), 4, numbers))
    alone = sample_sliding_window(gpt, cond[1:], (6, 6), 4, uniform=numbers[1:])
    assert torch.equal(alone, together[1:])
    assert not torch.equal(sample_sliding_window(gpt, cond, (6, 6), 4, seed=6), together)


def test_no_condition_is_the_start_token() -> None:
    gpt = small_gpt()
    sampled = sample_sliding_window(gpt, None, (5, 6), 4, batch_size=2, seed=1)
    zeros = torch.zeros(2, 1, dtype=torch.long)
    assert torch.equal(sampled, sample_sliding_window(gpt, zeros, (5, 6), 4, seed=1))
    assert sampled[0].tolist() != sampled[1].tolist()


def test_known_indices_are_kept() -> None:
    gpt, cond = small_gpt(), condition("map", (6, 7))
    numbers = uniforms(0, [0, 1], 42)
    sampled = sample_sliding_window(gpt, cond, (6, 7), 4, uniform=numbers)
    known = torch.full((2, 6, 7), -1)
    known[:, :4] = sampled[:, :4]
    known[1, 5, 2] = sampled[1, 5, 2]
    passes: list[int] = []
    again = sample_sliding_window(
        gpt, cond, (6, 7), 4, uniform=numbers, known=known, on_step=lambda _, n: passes.append(n)
    )
    assert torch.equal(again, sampled)
    assert passes[-1] == 42
    known[:, 2] = 7
    changed = sample_sliding_window(gpt, cond, (6, 7), 4, uniform=numbers, known=known)
    assert (changed[:, 2] == 7).all()
    assert not torch.equal(changed[:, 4:], sampled[:, 4:])


def test_no_token_beyond_the_codes() -> None:
    sampled = sample_sliding_window(
        small_gpt(), None, (8, 8), 4, temperature=50.0, n_codes=5, batch_size=4
    )
    assert set(sampled.unique().tolist()) == set(range(5))


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-9}])
def test_filters_apply_in_windows(filters: dict[str, Any]) -> None:
    greedy = sample_sliding_window(small_gpt(), None, (4, 5), 4, temperature=0)
    found = sample_sliding_window(small_gpt(), None, (4, 5), 4, temperature=9.0, **filters)
    assert torch.equal(found, greedy)


def test_only_what_is_needed_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, dtypes = [], set()
    original = sliding_window.Weights.logits

    def count(self: Any, segments: Any) -> Tensor:
        dtypes.add(self.dtype)
        counted.append(sum(segment.tokens.shape[1] for segment in segments))
        return original(self, segments)

    monkeypatch.setattr(sliding_window.Weights, "logits", count)
    sample_sliding_window(small_gpt(), condition("map", (4, 4))[:1], (4, 4), 4)
    assert dtypes == {torch.float32}
    assert counted == [16] + [1] * 15
    counted.clear()
    wide = condition("map", (4, 12))[:1]
    sample_sliding_window(small_gpt(), wide, (4, 12), 4, dtype=torch.float64)
    assert dtypes == {torch.float32, torch.float64}
    windows, others = 9, 4 * 12 - 9  # no row above: each window once, then what is new in it
    assert sum(counted) <= windows * (16 + 3) + others * 4
    assert len(counted) == 3 * 4 + 12  # rows run side by side


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cond": torch.zeros(1, 5, 6, dtype=torch.long)}, "map .B, 6, 6. or a prefix"),
        ({"cond": torch.full((1, 6, 6), 30)}, "from 30 to 30, but .* from 0 to 29"),
        ({"cond": torch.full((1, 1), -1)}, "from -1 to -1"),
        ({"cond": torch.zeros(1, 0, dtype=torch.long)}, "empty"),
        ({"window": 5}, "block_size is 31"),
        ({"cond": torch.zeros(1, 17, dtype=torch.long)}, "block_size is 31"),
        ({"window": 0}, "window"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_wrong_input(arguments: dict[str, Any], message: str) -> None:
    given = {"cond": torch.zeros(1, 6, 6, dtype=torch.long), "shape": (6, 6), "window": 4}
    with pytest.raises(UserError, match=message):
        sample_sliding_window(small_gpt(), **{**given, **arguments})

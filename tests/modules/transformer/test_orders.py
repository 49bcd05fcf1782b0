"""Codes in any order: the cache has the logits of the forward pass, and several positions that are
foreseen at once have those that each would have alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from taming.errors import UserError
from taming.kernel_choice import KERNELS
from taming.modules.transformer.decoding import CachedDecoder
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.orders import (
    by_rows,
    generate_in_steps,
    in_order,
    inwards,
    kept_first,
    left_after,
    path_of,
    random_orders,
    sizes_of,
)
from taming.modules.transformer.token_choice import sample_token
from tests.support import fill_by_name

VARIANTS: list[dict[str, Any]] = [
    {},
    {"rope_grid": (3, 4), "qk_norm": True, "norm": "rms", "mlp": "swiglu", "adaln_classes": 6},
]
BEFORE, CODES = 2, 12
IDX = torch.randint(20, (3, BEFORE + CODES), generator=torch.Generator().manual_seed(1))


def make(**options: Any) -> GPT:
    before = 1 if options.get("adaln_classes") else BEFORE
    sizes = {"vocab_size": 20, "block_size": before + CODES - 1, "n_layer": 2, "n_head": 2}
    model = GPT(**{**sizes, "n_embd": 16, "target_positions": True, **options})
    fill_by_name(model)
    return model.eval().requires_grad_(False)


def sequences(model: GPT) -> tuple[Tensor, Tensor, Tensor]:
    """Of condition and codes in random orders: the condition, all (3, m + n), and paths."""
    torch.manual_seed(3)
    before = model.config.whole - CODES
    idx = IDX[:, BEFORE - before :]
    return idx[:, :before], idx, path_of(random_orders(3, CODES), before)


def brute(model: GPT, idx: Tensor, path: Tensor, place: int) -> Tensor:
    """Logits (B, V) of what stands at the `place`-th position of the path after tokens (B, T)."""
    asked = torch.cat((path[:, : idx.shape[1]], path[:, place : place + 1]), dim=1)
    return model(idx, path=asked)[0][:, -1]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("options", VARIANTS, ids=["plain", "all"])
def test_a_cache_has_the_logits_of_the_forward_pass(
    options: dict[str, Any], static: bool, kernel: str
) -> None:
    model = make(**options)
    prompt, idx, path = sequences(model)
    expected = model(idx[:, :-1], path=path)[0]
    assert not torch.allclose(expected, model(idx[:, :-1])[0], atol=1e-2)
    decoder = CachedDecoder(model, 3, model.config.block_size, static=static, kernel=kernel)
    for rows in (slice(3), slice(1, 3)):
        decoder.begin(prompt[rows], path[rows])
        n = prompt.shape[1]
        got = {n: decoder.foresee(prompt[rows], 1)[:, 0]}
        got[n + 3] = decoder.extend(idx[rows, n : n + 3])
        for end in range(n + 4, idx.shape[1]):
            got[end] = decoder.extend(idx[rows, end - 1 : end]).clone()
        for end, logits in got.items():
            close(logits, expected[rows, end - 1])
    close(decoder.prefill(idx[:, :4]), model(idx[:, :4])[0][:, -1])  # again by rows


@pytest.mark.parametrize("options", VARIANTS, ids=["plain", "all"])
def test_positions_foreseen_at_once_have_the_logits_of_each_alone(options: dict[str, Any]) -> None:
    model = make(**options)
    prompt, idx, path = sequences(model)
    decoder, read = CachedDecoder(model, 3, model.config.block_size), 0
    decoder.begin(prompt, path)
    for length, count in ((prompt.shape[1], 4), (prompt.shape[1] + 4, 3), (idx.shape[1] - 5, 5)):
        logits = decoder.foresee(idx[:, read:length], count)
        for n in range(count):
            close(logits[:, n], brute(model, idx[:, :length], path, length + n))
        read = length


def test_codes_of_a_step_are_drawn_given_all_of_the_steps_before() -> None:
    """By conditionals that a pass of their own gives each, for known codes and two copies too."""
    model = make()
    prompt, _, path = sequences(model)
    known = torch.full((3, CODES), -1)
    known[:, :2], known[1, 4] = 7, 8
    sizes = [1, 2, 4, 3]
    uniform = torch.rand(3, CODES)
    prompts = torch.cat((prompt, prompt.flip(1)))

    def pick(logits: Tensor, done: int) -> Tensor:
        mixed = logits[:3] + 0.5 * logits[3:]
        numbers = uniform[:, done : done + mixed.shape[1]]
        return sample_token(mixed.flatten(0, 1), numbers.flatten()).view(numbers.shape)

    seen: list[int] = []
    decoder = CachedDecoder(model, 6, model.config.block_size)
    codes = generate_in_steps(
        decoder,
        prompts,
        path.repeat(2, 1),
        sizes,
        pick,
        lambda _, done: seen.append(done),
        known,
        copies=2,
    )
    assert seen == [3, 5, 9, 12] and (codes[:, :2] == 7).all() and codes[1, 4] == 8
    done = 2
    for size in sizes:
        read = torch.cat((prompts, codes[:, :done].repeat(2, 1)), dim=1)
        for n in range(done, done + size):
            logits = brute(model, read, path.repeat(2, 1), BEFORE + n)
            expected = pick(logits[:, None], n)[:, 0]
            kept = known[:, n] >= 0
            assert torch.equal(codes[~kept, n], expected[~kept])
        done += size


def test_by_rows_the_path_is_not_needed() -> None:
    model = make()
    prompt, idx, _ = sequences(model)
    rows = path_of(torch.arange(CODES).expand(3, -1), prompt.shape[1])
    assert torch.equal(model(idx[:, :-1], path=rows)[0], model(idx[:, :-1])[0])


def test_what_is_kept_comes_first_by_rows() -> None:
    order = torch.tensor([[3, 1, 0, 2], [2, 3, 1, 0]])
    known = torch.tensor([[-1, -1, 5, 6], [4, -1, -1, -1]])
    assert kept_first(order, known).tolist() == [[2, 3, 1, 0], [0, 2, 3, 1]]
    assert torch.equal(by_rows(in_order(known, order), order), known)


def test_holes_are_filled_from_what_is_kept_inwards() -> None:
    known = torch.zeros(5, 3, 3, dtype=torch.long)
    known[0, :2, :2] = -1  # a corner
    known[1] = -1
    known[2, 1:] = -1  # all but the first row
    known[3, 0] = -1  # the first row
    orders = inwards(known).tolist()
    assert orders[0] == [2, 5, 6, 7, 8, 4, 1, 3, 0]
    assert orders[1] == list(range(9))
    assert orders[2] == [0, 1, 2, 4, 3, 5, 7, 6, 8]
    assert orders[3] == [3, 4, 5, 6, 7, 8, 1, 0, 2]
    assert orders[4] == list(range(9))
    wide = torch.full((1, 2, 5), -1)
    wide[0, 1, 4] = 3
    assert inwards(wide).tolist() == [[9, 3, 4, 8, 2, 7, 1, 6, 0, 5]]


def test_the_next_place_has_most_of_the_eight_around_it_and_is_the_first_of_several() -> None:
    there = torch.rand(9, 8, generator=torch.Generator().manual_seed(0)) < 0.1
    there[:3] = False
    known = torch.where(there, 0, -1)[None]
    (order,) = inwards(known).tolist()
    kept = int(there.sum())
    assert order[:kept] == there.flatten().nonzero()[:, 0].tolist()
    for place in order[kept:]:
        around = F.conv2d(there[None, None].float(), torch.ones(1, 1, 3, 3), padding=1)
        counts = around[0, 0].masked_fill(there, -1).flatten().tolist()
        assert counts.index(max(counts)) == place
        there.view(-1)[place] = True
    assert sorted(order) == list(range(72))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_every_step_takes_a_code_and_the_last_the_rest(schedule: Any) -> None:
    for length in (1, 4, 16, 256):
        for steps in (1, 2, 8, length):
            left = left_after(length, steps, schedule)
            sizes = sizes_of(left, length)
            assert len(sizes) == min(steps, length) and min(sizes) >= 1 and sum(sizes) == length
    assert left_after(16, 4) == [15, 11, 6, 0]
    assert left_after(16, 4, "linear") == [12, 8, 4, 0]
    wanted = [256 * math.cos(math.pi / 2 * n / 8) for n in range(1, 9)]
    assert all(abs(a - b) <= 0.5 for a, b in zip(left_after(256, 8), wanted, strict=True))


def test_random_orders_are_permutations_by_the_global_generator() -> None:
    torch.manual_seed(0)
    orders = random_orders(50, 6)
    assert torch.equal(orders.sort(1).values, torch.arange(6).expand(50, -1))
    assert len(orders.unique(dim=0)) > 40
    torch.manual_seed(0)
    assert torch.equal(random_orders(50, 6), orders)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_unmasked": 1}, "n_unmasked is 1, but with target_positions"),
        ({"attention": "full"}, "target_positions is True, but with attention: full"),
        ({"attention": "both"}, "attention is causal or full, not both"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)


def test_orders_are_for_models_that_are_told_the_position() -> None:
    model = make(target_positions=False)
    prompt, idx, path = sequences(make())
    decoder = CachedDecoder(model, 3, 4)
    for call in (
        lambda: model(idx[:, :-1], path=path),
        lambda: decoder.begin(prompt, path),
        lambda: decoder.foresee(prompt, 2),
    ):
        with pytest.raises(UserError, match="target_positions"):
            call()
    with pytest.raises(UserError, match="reads by rows"):
        make().forward_with_past(idx)

"""Images of other sizes than the training's, of models of any order, through windows that show all
that is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.orders import inwards, kept_first
from taming.sampling import (
    Progress,
    Request,
    SampleSettings,
    sample_images,
    sample_sliding_window,
    uniforms,
    walks,
    windows,
)
from taming.sampling.any_order_windows import sample_in_windows
from taming.sampling.chance import Chance
from taming.sampling.sliding_window import SlidingWindow
from taming.sampling.windows import Box, Conditions, Layout
from tests.kit.models import tiny_model, transformer_config
from tests.sampling.test_any_order import SETTINGS, groups_of
from tests.support import fill_by_name

Shape = tuple[int, int]
CPU = torch.device("cpu")
NULL = 23  # the token of no condition
SMALL: dict[str, Any] = {"vocab_size": 24, "target_positions": True}


def make(**gpt: Any) -> Any:
    """A model of random orders, of 4 x 4 codes."""
    model = instantiate_from_config(
        transformer_config({**SMALL, **gpt}, order="random", cond_drop=0.1)
    )
    fill_by_name(model)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Any:
    return make()


def codes_of(model: Any, requests: Sequence[Request], settings: Any = None, **more: Any) -> Tensor:
    return torch.stack([one.indices for one in sample_images(model, requests, settings, **more)])


def noise(shape: Shape, seed: int = 0) -> Tensor:
    return torch.randint(20, shape, generator=torch.Generator().manual_seed(seed))


def padded(shape: Shape, top: int, left: int, seed: int = 0) -> Tensor:
    """Codes below and on the right, as `--pad` leaves them."""
    known = noise(shape, seed)
    known[:top], known[:, :left] = -1, -1
    return known


def holes(shape: Shape) -> Tensor:
    """Two of them, one at a corner."""
    known = noise(shape)
    known[:2, :3] = -1
    known[-3:-1, -3:] = -1
    return known


def order_of(request: Request, shape: Shape, settings: SampleSettings) -> list[int]:
    """In which order the places of one image are read, known ones first."""
    (order,) = orders = settings.own_orders(0, [request.stream], shape[0] * shape[1])
    if request.known is None:
        return list(order.tolist())
    if (settings.order or settings.default_order) == "inwards":
        (order,) = inwards(request.known[None])
    else:
        (order,) = kept_first(orders, request.known.flatten()[None])
    return list(order.tolist())


def condition_of(request: Request, box: tuple[int, int, int, int], shape: Shape) -> Any:
    """Tokens of the condition in a window (top, left, height, width), and their positions in
    training."""
    top, left, h, w = box
    if isinstance(request.condition, Tensor):
        part = request.condition[top : top + h, left : left + w].flatten().tolist()
        return part, [row * 4 + column for row in range(h) for column in range(w)], 16
    prompt = list(request.whole)
    if request.prompt_in is not None:
        height, width = shape
        prompt = list(request.prompt_in((left / width, top / height, w / width, h / height)))
    return prompt, list(range(len(prompt))), len(prompt)


@torch.no_grad()
def plain_loop(model: Any, request: Request, shape: Shape, settings: SampleSettings) -> Tensor:
    """The definition, place by place, by passes of the whole window without a cache."""
    height, width = shape
    h, w = min(4, height), min(4, width)
    length = height * width
    order = order_of(request, shape, settings)
    codes = torch.full(shape, -1) if request.known is None else request.known.clone()
    done = [place for place in order if codes[divmod(place, width)] >= 0]
    uniform, own_k = uniforms(0, [request.stream], length), None
    if (ks := settings.own_top_k(0, [request.stream])) is not None:
        own_k = torch.tensor(ks)
    for group in groups_of(settings, order, set(done)):
        new = []
        for n, place in enumerate(group):
            row, column = divmod(place, width)
            top = min(max(row - h // 2, 0), height - h)
            left = min(max(column - w // 2, 0), width - w)
            within = [divmod(p, width) for p in done]
            within = [(y, x) for y, x in within if 0 <= y - top < h and 0 <= x - left < w]
            tokens, path, before = condition_of(request, (top, left, h, w), shape)
            path = path + [before + (y - top) * 4 + x - left for y, x in [*within, (row, column)]]
            image = [int(codes[at]) for at in within]
            rows = [tokens + image, [NULL] * len(tokens) + image][: 2 if settings.guided else 1]
            read, way = torch.tensor(rows), torch.tensor(path).expand(len(rows), -1)
            logits = model.transformer(read, path=way)[0][:, -1, :20]
            guided = settings.guide(logits, len(done) / length)
            new.append(settings.pick(guided, uniform[:, len(done) + n], own_k)[0])
        for place, code in zip(group, new, strict=True):
            codes[divmod(place, width)] = code
        done += group
    return codes.flatten()


LAST_FIRST = SampleSettings(order=tuple(range(34, -1, -1)), steps=9, step_schedule="linear")
WAYS = [
    SampleSettings(top_k=9),
    SampleSettings(order="raster"),
    SampleSettings(order="random", guidance=2.0, guidance_schedule="cosine"),
    SampleSettings(order="inwards", steps=4, top_k=(3, 9)),
    SampleSettings(steps=6, guidance=5.0, guidance_schedule="linear"),
    LAST_FIRST,
]


@pytest.mark.parametrize("settings", WAYS)
@pytest.mark.parametrize("keep", [None, holes, lambda shape: padded(shape, 2, 3)])
def test_every_place_is_predicted_from_all_that_is_known_around_it(
    model: Any, settings: SampleSettings, keep: Callable[[Shape], Tensor] | None
) -> None:
    shape = (5, 7)
    known = None if keep is None else keep(shape)
    requests = [Request(n, (label,), label, known=known) for label in (3, 1) for n in range(2)]
    got = codes_of(model, requests, settings, shape=shape, batch_size=3)
    for row, request in zip(got, requests, strict=True):
        assert torch.equal(row, plain_loop(model, request, shape, settings))


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (2, 3), (1, 2), (3, 8), (6, 2), (9, 10)])
def test_images_of_every_size(model: Any, shape: Shape) -> None:
    known = noise(shape)
    known[: (shape[0] + 1) // 2, : (shape[1] + 1) // 2] = -1
    for settings in (SampleSettings(), SampleSettings(steps=1)):
        for request in (Request(4, (2,), 2), Request(4, (2,), 2, known=known)):
            (got,) = codes_of(model, [request], settings, shape=shape)
            assert torch.equal(got, plain_loop(model, request, shape, settings))


def prompt_in(box: Box) -> tuple[int, ...]:
    """Tokens that tell where the window is, as scenes have them."""
    return tuple(int(19 * side) for side in box)


CONDITIONS = {
    "map": lambda shape: torch.randint(23, shape),
    "scene": lambda shape: prompt_in,
}


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("shape", [(5, 7), (3, 2)])
def test_conditions_move_with_the_window(kind: str, shape: Shape) -> None:
    model = make(block_size=31)
    torch.manual_seed(0)
    for settings in (SampleSettings(), SampleSettings(guidance=2.0, steps=4)):
        requests = [
            Request(n, CONDITIONS[kind](shape), known=known)
            for n, known in enumerate((holes((5, 7))[: shape[0], : shape[1]],) * 2)
        ]
        got = codes_of(model, requests, settings, shape=shape)
        for row, request in zip(got, requests, strict=True):
            assert torch.equal(row, plain_loop(model, request, shape, settings))


@pytest.mark.parametrize("shape", [(5, 7), (3, 3)])
def test_classes_and_positions_that_act_otherwise(shape: Shape) -> None:
    model = make(rope_grid=[4, 4], adaln_classes=5, n_embd=32, qk_norm=True, norm="rms")
    requests = [Request(n, (n,), n, known=padded(shape, 1, n)) for n in (1, 2)]
    for settings in (SampleSettings(), SampleSettings(steps=3, guidance=2.0)):
        got = codes_of(model, requests, settings, shape=shape)
        for row, request in zip(got, requests, strict=True):
            assert torch.equal(row, plain_loop(model, request, shape, settings))
    with_none = [replace(request, known=None) for request in requests]
    got = codes_of(model, with_none, SampleSettings(steps=2), shape=shape)  # reads nothing at first
    assert torch.equal(got[0], plain_loop(model, with_none[0], shape, SampleSettings(steps=2)))


def first_code(model: Any, settings: SampleSettings, changed: slice | None = None) -> int:
    """The one that is sampled first, greedily, where other codes are kept in some rows."""
    known = padded((6, 6), 2, 2)
    if changed is not None:
        known[changed, 2:] = (known[changed, 2:] + 7) % 20
    seen: list[Progress] = []
    request = Request(0, (3,), 3, known=known)
    codes_of(model, [request], settings, shape=(6, 6), on_step=seen.append)
    assert seen[-1].done == seen[-1].total == 20
    return int(seen[0].indices[0, order_of(request, (6, 6), settings)[16]])


@pytest.mark.parametrize("order", [None, "raster", tuple(range(36))])
def test_the_first_code_depends_on_what_is_kept_below_and_right_of_it(
    model: Any, order: Any
) -> None:
    settings = SampleSettings(order=order, temperature=0)
    before = first_code(model, settings)
    assert before != first_code(model, settings, slice(2, 4))
    assert before == first_code(model, settings, slice(4, 6))  # out of sight


def test_of_a_model_by_rows_it_does_not() -> None:
    settings = SampleSettings(temperature=0)
    seen: list[int] = []
    for seed in (0, 1):
        request = Request(0, (3,), 3, known=padded((6, 6), 2, 2, seed))
        seen.append(int(codes_of(tiny_model(), [request], settings, shape=(6, 6))[0, 0]))
    assert seen[0] == seen[1]


def test_annealed_models_go_by_rows_unless_they_are_asked_for_more(model: Any) -> None:
    config = transformer_config(SMALL, order="annealed", cond_drop=0.1)
    annealed = instantiate_from_config(config).eval()
    annealed.load_state_dict(model.state_dict())
    requests = [Request(0, (3,), 3, known=padded((6, 6), 2, 2, seed)) for seed in (0, 1)]
    for settings in (SampleSettings(), SampleSettings(order="raster")):
        above = codes_of(annealed, requests, settings, shape=(6, 6))[:, :12]
        assert torch.equal(*above)  # what is kept comes later
        nothing = [replace(requests[0], known=None)]
        assert torch.equal(codes_of(annealed, nothing, settings, shape=(6, 6))[0, :12], above[0])
    for more in ({"order": "inwards"}, {"steps": 5, "order": "random"}):
        settings = SampleSettings(**more)
        expected = codes_of(model, requests, settings, shape=(6, 6))
        assert torch.equal(codes_of(annealed, requests, settings, shape=(6, 6)), expected)
        assert not torch.equal(*expected[:, :12])
    got = codes_of(annealed, requests, SampleSettings(steps=5), shape=(6, 6))
    by_rows = SampleSettings(steps=5, order="raster")
    assert torch.equal(got, codes_of(model, requests, by_rows, shape=(6, 6)))


@pytest.mark.parametrize("shape", [(3, 3), (2, 6), (4, 2), (1, 4)])
@pytest.mark.parametrize("kind", ["class", "rope", "map"])
def test_by_rows_codes_of_smaller_images_stand_where_they_did_in_training(
    kind: str, shape: Shape
) -> None:
    """Of models that read what is kept at its place: as one code a step, and as a pass over all."""
    gpt = {
        "class": {},
        "rope": {"rope_grid": [4, 4], "n_embd": 32},
        "map": {"block_size": 31},
    }[kind]
    model = make(**gpt)
    config = transformer_config({**SMALL, **gpt}, order="annealed", cond_drop=0.1)
    annealed = instantiate_from_config(config).eval().requires_grad_(False)
    annealed.load_state_dict(model.state_dict())
    request = Request(5, torch.randint(20, shape) if kind == "map" else (3,))
    got = codes_of(annealed, [request], shape=shape)
    by_rows = SampleSettings(order="raster")
    assert torch.equal(got[0], plain_loop(model, request, shape, by_rows))
    steps = SampleSettings(steps=shape[0] * shape[1], step_schedule="linear", order="raster")
    assert torch.equal(got, codes_of(annealed, [request], steps, shape=shape))


def test_a_window_as_large_as_training_is_the_way_without_windows(model: Any) -> None:
    requests = [Request(n, (label,), label) for label in (3, 1) for n in range(2)]
    for hole in (None, padded((4, 4), 2, 2), holes((4, 4))):
        with_hole = [replace(request, known=hole) for request in requests]
        for settings in SETTINGS:
            expected = codes_of(model, with_hole, settings)
            copies = 2 if settings.guided else 1
            prompts = torch.tensor([request.whole for request in requests])
            prompts = torch.cat((prompts, torch.full_like(prompts, NULL)))[: copies * 4]
            streams = [request.stream for request in requests]
            chance = Chance(settings, 20, 0, streams, length=16, device=CPU)
            conditions = Conditions(prompts, Layout.of((4, 4), (4, 4)))
            known = None if hole is None else hole.expand(4, 4, 4)
            weights = Weights(model.transformer)
            got = sample_in_windows(weights, conditions, (4, 4), chance, known=known)
            assert torch.equal(got, expected)


def test_by_rows_of_nothing_known_it_is_the_sliding_window(model: Any) -> None:
    request, settings = Request(0, (3,), 3), SampleSettings()
    chance = Chance(settings, 20, 0, [request.stream], length=63, device=CPU)
    layout, weights = Layout((7, 9), (4, 4)), Weights(model.transformer)
    grid = SlidingWindow(weights, torch.tensor([[3]]), layout).sample(
        lambda logits, row, column: chance.pick(logits, row * 9 + column)
    )
    assert torch.equal(codes_of(model, [request], settings, shape=(7, 9)), grid.flatten(1))


def test_samples_are_of_seed_and_number_whatever_the_batch_and_the_memory(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (6, 9)
    kept = [padded(shape, 2, 3), None, holes(shape), padded(shape, 2, 3, seed=1)]
    requests = [Request(n, (n % 5,), n % 5, known=known) for n, known in enumerate(kept)]
    for settings in (SampleSettings(), SampleSettings(steps=7, guidance=2.0)):
        seen: list[Progress] = []
        together = codes_of(model, requests, settings, shape=shape, on_step=seen.append)
        done = [step.done for step in seen]
        assert done == sorted(done) and done.index(54) == len(done) - 1
        assert {step.total for step in seen} == {54}
        assert torch.equal(seen[-1].indices, together)
        assert torch.equal(codes_of(model, requests, settings, shape=shape, batch_size=1), together)
        for request, row in zip(requests, together, strict=True):
            if request.known is not None:
                is_kept = request.known.flatten() >= 0
                assert torch.equal(row[is_kept], request.known.flatten()[is_kept])
        with monkeypatch.context() as patch:
            patch.setattr(windows, "CACHE_BYTES", 0)
            patch.setattr(walks, "MOST_READ", 20)
            less = codes_of(model, requests, settings, shape=shape)
        assert torch.equal(less, together)
        assert not torch.equal(codes_of(model, requests, settings, shape=shape, seed=1), together)


def test_only_what_is_needed_is_read(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read, made = [], []
    logits, new_cache = Weights.logits, Weights.new_cache

    def count(self: Any, segments: Any) -> Tensor:
        read.append(sum(segment.tokens.numel() for segment in segments))
        return logits(self, segments)

    def note(self: Any, rows: int, length: int) -> Tensor:
        made.append((rows, length))
        return new_cache(self, rows, length)

    monkeypatch.setattr(Weights, "logits", count)
    monkeypatch.setattr(Weights, "new_cache", note)
    by_rows = SampleSettings(order="raster")
    codes_of(model, [Request(0, (3,), 3)], by_rows, shape=(3, 3))
    assert read == [1] * 9 and made == [(1, 9)]  # a single window
    read.clear(), made.clear()
    known = noise((3, 12))
    known[1, [2, 9]] = -1
    codes_of(model, [Request(0, (3,), 3, known=known)], by_rows, shape=(3, 12))
    assert read == [2 * 12] and not made  # both at once, and no window again
    read.clear()
    codes_of(model, [Request(0, (3,), 3, known=noise((3, 12)))], by_rows, shape=(3, 12))
    assert not read
    for memory in (windows.CACHE_BYTES, 0):  # there is always room for one
        read.clear(), made.clear()
        monkeypatch.setattr(windows, "CACHE_BYTES", memory)
        codes_of(model, [Request(0, (3,), 3)], by_rows, shape=(9, 4))
        # Windows come one after the other: of three rows, then of one each, and of the last two.
        assert made == [(1, 16)] and sum(read) == 12 + 4 * (9 + 3) + (9 + 7)


def test_a_gpt_alone_is_sampled_in_the_same_way(model: Any) -> None:
    gpt, cond = GPT(30, 20, n_layer=2, n_head=2, n_embd=16, target_positions=True), None
    fill_by_name(gpt)
    gpt.eval()
    known = torch.stack([padded((6, 7), 2, 2), padded((6, 7), 2, 2, seed=3)])
    seen: list[int] = []
    sampled = sample_sliding_window(
        gpt, cond, (6, 7), 4, batch_size=2, known=known, on_step=lambda _, n: seen.append(n)
    )
    assert sampled.shape == (2, 6, 7) and not sampled.is_inference()
    assert seen[0] == 21 and seen[-1] == 42
    assert torch.equal(sampled[known >= 0], known[known >= 0])
    numbers = uniforms(0, [0, 1], 42)
    one = sample_sliding_window(gpt, None, (6, 7), 4, known=known[1:], uniform=numbers[1:])
    assert torch.equal(one, sampled[1:])
    known[:, 2:, 2:] = 0
    other = sample_sliding_window(gpt, None, (6, 7), 4, batch_size=2, known=known)
    assert not torch.equal(other[:, :2], sampled[:, :2])


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ({}, {"steps": 31}, "steps is 31, but the image has 30 codes"),
        ({}, {"order": tuple(range(16))}, "order has 16 places, and the image 30"),
        ({"condition": torch.zeros(4, 6, dtype=torch.long)}, {}, "must be a map .B, 5, 6. or a"),
        ({"condition": (1, 2, 3)}, {}, "a sequence of 18 tokens, but .* block_size is 16"),
        ({"condition": ()}, {}, "the condition is empty"),
        ({"known": torch.zeros(4, 6, dtype=torch.long)}, {}, "the known indices are .4, 6., but"),
        ({"condition": (24,)}, {}, "tokens from 24 to 24"),
    ],
)
def test_what_does_not_fit(
    given: dict[str, Any], settings: dict[str, Any], message: str, model: Any
) -> None:
    request = replace(Request(0, (3,), 3), **given)
    with pytest.raises(UserError, match=message):
        codes_of(model, [request], SampleSettings(**settings), shape=(5, 6))

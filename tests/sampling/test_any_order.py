"""Samples and completions in any order, several codes at once, and of masked codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.models.reading_order import ReadingOrder
from taming.modules.transformer.orders import (
    in_order,
    inwards,
    kept_first,
    left_after,
    path_of,
    sizes_of,
)
from taming.sampling import Progress, Request, SampleSettings, sample_images, uniforms
from taming.sampling.settings import parse_order
from tests.kit.models import SPIRAL, tiny_model, transformer_config
from tests.support import fill_by_name

TOLD: dict[str, Any] = {"target_positions": True}
FULL: dict[str, Any] = {"attention": "full", "block_size": 17}
REQUESTS = [Request(n, (label,), label) for label in (3, 1) for n in range(2)]
STREAMS = [request.stream for request in REQUESTS]
HOLE = torch.full((4, 4), 7)
HOLE[:2, :2] = -1  # the upper left quarter
SETTINGS = [
    SampleSettings(top_k=9),
    SampleSettings(order="raster"),
    SampleSettings(order="random"),
    SampleSettings(order="inwards", steps=3),
    SampleSettings(steps=5, top_p=0.9),
    SampleSettings(steps=4, step_schedule="linear", order=tuple(range(15, -1, -1))),
    SampleSettings(order="random", guidance=2.0, top_k=(3, 9)),
    SampleSettings(steps=6, guidance=2.0, top_k=(3, 9)),
]


def make(gpt: dict[str, Any], **changes: Any) -> Any:
    config = transformer_config({"vocab_size": 24, **gpt}, cond_drop=0.1, **changes)
    model = instantiate_from_config(config)
    fill_by_name(model)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Any:
    return make(TOLD, order="random")


@pytest.fixture(scope="module")
def masked() -> Any:
    return make(FULL)


def indices(model: Any, requests: Any = REQUESTS, settings: Any = None, **options: Any) -> Tensor:
    return torch.stack([s.indices for s in sample_images(model, requests, settings, **options)])


def groups_of(settings: SampleSettings, order: list[int], known: set[int]) -> list[list[int]]:
    """Which places each step samples."""
    rest = [place for place in order if place not in known]
    if settings.steps is None:
        return [[place] for place in rest]
    sizes = sizes_of(left_after(len(rest), settings.steps, settings.step_schedule), len(rest))
    return [[rest.pop(0) for _ in range(size)] for size in sizes]


@pytest.mark.parametrize("hole", [None, HOLE], ids=["whole", "hole"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_each_code_has_its_conditional_given_all_before_it(
    model: Any, settings: SampleSettings, hole: Tensor | None
) -> None:
    """Against passes without a cache over what is kept and what was sampled before."""
    requests = [replace(request, known=hole) for request in REQUESTS]
    got = indices(model, requests, settings, batch_size=3)
    kept = set() if hole is None else {n for n, code in enumerate(hole.flatten()) if code >= 0}
    uniform, own_k = uniforms(0, STREAMS, 16), settings.own_top_k(0, STREAMS)
    orders = settings.own_orders(0, STREAMS, 16)
    copies = 2 if settings.guided else 1
    for row, request in enumerate(requests):
        known = None if hole is None else hole.flatten()[None]
        order = orders[row : row + 1]
        if known is not None:
            inner = (settings.order or settings.default_order) == "inwards"
            order = inwards(known.view(1, 4, 4)) if inner else kept_first(order, known)
        ordered = in_order(got[row : row + 1], order)
        done = len(kept)
        assert got[row].masked_select(torch.tensor([n in kept for n in range(16)])).eq(7).all()
        for group in groups_of(settings, order[0].tolist(), kept):
            share = done / 16
            for n, place in enumerate(group):
                prompt = torch.tensor([[request.condition[0]], [23]])[:copies]
                read = torch.cat((prompt, ordered[:, :done].repeat(copies, 1)), dim=1)
                path = path_of(order, 1)[:, : done + 1]
                path = torch.cat((path, torch.tensor([[1 + place]])), dim=1).repeat(copies, 1)
                logits = model.transformer(read, path=path)[0][:, -1, :20]
                logits = settings.guide(logits, share)
                k = None if own_k is None else torch.tensor(own_k[row : row + 1])
                number = uniform[row : row + 1, done + n]
                assert settings.pick(logits, number, k)[0] == got[row, place]
            done += len(group)


@pytest.mark.parametrize("order", [None, "raster"])
def test_annealed_models_go_row_by_row_and_read_what_is_kept_at_its_place(
    order: str | None,
) -> None:
    """As in the rows that their training ended in."""
    annealed, seen = make(TOLD, order="annealed"), list[Progress]()
    other = HOLE.flip(0, 1)  # the lower right quarter
    requests = [replace(REQUESTS[n], known=known) for n, known in enumerate((HOLE, other))]
    got = indices(annealed, requests, SampleSettings(order=order), on_step=seen.append)
    rows, uniform = torch.arange(16)[None], uniforms(0, STREAMS, 16)
    for row, request in enumerate(requests):
        assert request.known is not None
        expected = request.known.flatten().clone()
        for place in range(16):
            if expected[place] < 0:
                read = torch.cat((torch.tensor(request.condition), expected[:place]))[None]
                path = path_of(rows, 1)[:, : place + 2]
                logits = annealed.transformer(read, path=path)[0][:, -1, :20]
                expected[place] = SampleSettings().pick(logits, uniform[row, place][None])[0]
        assert torch.equal(got[row], expected)
    done = [step.done for step in seen]
    assert done == sorted(done) and done[0] == 1 and done[-1] == seen[0].total == 8


def test_what_annealed_models_do_when_asked_for_more(model: Any) -> None:
    annealed = make(TOLD, order="annealed")
    shared = make(TOLD, order="annealed", raster_share=0.5)  # which keeps other orders
    for request in (REQUESTS[0], replace(REQUESTS[0], known=HOLE)):
        for own, other in (
            ({"steps": 3}, {"steps": 3, "order": "raster"}),
            ({"order": "inwards"}, {"order": "inwards"}),
            ({"order": "random", "steps": 3}, {"steps": 3}),
        ):
            got = indices(annealed, [request], SampleSettings(**own))
            assert torch.equal(got, indices(model, [request], SampleSettings(**other)))
        assert torch.equal(indices(shared, [request]), indices(model, [request]))
    for order in ("random", "annealed"):
        assert ReadingOrder(order, by_rows=1.0).ends_by_rows
        assert not ReadingOrder(order, by_rows=0.9).ends_by_rows


def test_samples_do_not_depend_on_the_batch_and_bars_count_codes(model: Any, masked: Any) -> None:
    for one, settings in ((model, SETTINGS[2]), (model, SETTINGS[4]), (masked, SampleSettings())):
        seen: list[Progress] = []
        alone = indices(one, settings=settings, batch_size=1)
        together = indices(one, settings=settings, on_step=seen.append)
        assert torch.equal(alone, together) and len(alone.unique(dim=0)) == 4
        done = [step.done for step in seen]
        assert done == sorted(set(done)) and done[-1] == seen[-1].total == 16
        assert torch.equal(seen[-1].indices.cpu(), together)
    assert len(done) == 8  # of masked codes


def test_a_hole_depends_on_what_is_kept_below_and_right_of_it(model: Any, masked: Any) -> None:
    raster = tiny_model()
    for one, sees in ((model, True), (masked, True), (raster, False)):
        first, other = (
            indices(
                one, [replace(REQUESTS[0], known=known)], SampleSettings(temperature=0), seed=1
            )[0].view(4, 4)[:2, :2]
            for known in (HOLE, HOLE.where(HOLE < 0, torch.tensor(3)))
        )
        first_row = first[0], other[0]  # by rows, the next one follows kept codes
        assert torch.equal(*first_row) != sees
    seen: list[Progress] = []
    indices(model, [replace(REQUESTS[0], known=HOLE)], on_step=seen.append)
    assert [step.done for step in seen] == [1, 2, 3, 4] and seen[0].total == 4


def test_images_with_different_holes_share_a_batch(model: Any, masked: Any) -> None:
    other = HOLE.flip(0).clone()
    other[0] = -1
    requests = [REQUESTS[0], *(replace(REQUESTS[1], known=known) for known in (HOLE, other))]
    for one in (model, masked):
        for settings in (SampleSettings(), SampleSettings(steps=3)):
            got = indices(one, requests, settings)
            for row, known in ((1, HOLE), (2, other)):
                kept = known.flatten() >= 0
                assert torch.equal(got[row][kept], known.flatten()[kept])
            assert got.max() < 20


@pytest.mark.parametrize("order", ["inwards", "raster", "random"])
@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_images_beside_it_change_no_image(
    model: Any, order: str, steps: int | None, guidance: float
) -> None:
    few = torch.full((4, 4), 5)
    few[1, 1:] = -1
    requests = [
        replace(REQUESTS[n % len(REQUESTS)], number=n, known=known)
        for n, known in enumerate((HOLE, few, None, HOLE.flip(0), torch.full((4, 4), 2)))
    ]
    settings = SampleSettings(order=order, steps=steps, guidance=guidance)
    seen: list[Progress] = []
    together = indices(model, requests, settings, on_step=seen.append)
    alone = [indices(model, [one], settings)[0] for one in requests]
    assert torch.equal(together, torch.stack(alone))
    done = [step.done for step in seen]
    assert done == sorted(done) and done[-1] == seen[0].total == 16


@pytest.mark.parametrize("gpt", [{**TOLD, "block_size": 15}, {**FULL, "block_size": 16}])
def test_positions_beyond_the_transformers_are_refused(gpt: dict[str, Any]) -> None:
    model = make(gpt, **({} if "attention" in gpt else {"order": "random"}))
    for shape in (None, (2, 2), (6, 6)):
        with pytest.raises(UserError, match="images of training have 4 x 4 codes by the first sta"):
            indices(model, REQUESTS, shape=shape)


def filled_in(model: Any, request: Request, settings: SampleSettings, seed: int) -> Tensor:
    """One image by whole passes, as arXiv 2202.04200 (section 3.3) describes it."""
    asked = settings.steps or 8
    uniform = uniforms(seed, [request.stream], asked * 2 * 16).view(asked, 2, 16)
    known = torch.full((16,), -1) if request.known is None else request.known.flatten()
    own_k = settings.own_top_k(seed, [request.stream])
    codes, masked = known.clone(), int((known < 0).sum())
    turns = min(asked, masked)
    for turn, left in enumerate(left_after(masked, turns, settings.step_schedule)):
        read = codes.where(codes >= 0, torch.tensor(23))
        prompts = [request.condition[0], 23][: 2 if settings.guided else 1]
        rows = [torch.cat((torch.tensor([prompt]), read)) for prompt in prompts]
        logits = model.transformer(torch.stack(rows))[0][:, 1:, :20]  # (copies, 16, V)
        done = int((codes >= 0).sum()) / 16
        rise = {"constant": 1.0, "linear": done}[settings.guidance_schedule]
        scale = 1 + (settings.guidance - 1) * rise
        guided = logits[-1] + scale * (logits[0] - logits[-1]) if settings.guided else logits[0]
        k = None if own_k is None else torch.tensor(own_k * 16)
        new = settings.pick(guided, uniform[turn, 0], k)
        sure = guided.log_softmax(-1)[torch.arange(16), new]
        if settings.temperature:
            noise = -torch.log(-torch.log(uniform[turn, 1]))
            sure = sure + settings.confidence_noise * (1 - (turn + 1) / turns) * noise
        count = int((codes < 0).sum()) - left
        places = sure.masked_fill(codes >= 0, -torch.inf).argsort(descending=True)[:count]
        codes[places] = new[places]
    return codes


@pytest.mark.parametrize("hole", [None, HOLE], ids=["whole", "hole"])
@pytest.mark.parametrize(
    "settings",
    [
        SampleSettings(),
        SampleSettings(temperature=0.7, confidence_noise=1.5, steps=3),
        SampleSettings(temperature=0),
        SampleSettings(steps=16, top_k=(2, 20)),
        SampleSettings(steps=16, confidence_noise=0.6),
        SampleSettings(guidance=3.0, steps=6, step_schedule="linear"),
        SampleSettings(guidance=3.0, guidance_schedule="linear", confidence_noise=0.0),
        SampleSettings(guidance=4.0, guidance_schedule="linear", steps=12, confidence_noise=9.0),
    ],
)
def test_masked_codes_are_those_of_the_written_out_steps(
    masked: Any, settings: SampleSettings, hole: Tensor | None
) -> None:
    """In batches of whole images and of ones with a hole, in which fewer codes than steps are."""
    requests = [replace(request, known=hole) for request in REQUESTS] + REQUESTS[:1]
    if hole is not None:
        requests.append(replace(REQUESTS[2], known=hole.flip(0).roll(1, 1)))
    got = indices(masked, requests, settings, seed=5)
    for row, request in enumerate(requests):
        assert torch.equal(got[row], filled_in(masked, request, settings, seed=5))


def test_masked_codes_follow_settings(masked: Any) -> None:
    greedy = indices(masked, settings=SampleSettings(temperature=0))
    assert torch.equal(greedy, indices(masked, settings=SampleSettings(temperature=0), seed=9))
    for settings in (
        SampleSettings(guidance=3.0),
        SampleSettings(steps=16),
        SampleSettings(confidence_noise=0.0),
        SampleSettings(top_k=2),
        SampleSettings(top_k=(2, 20)),
    ):
        assert not torch.equal(indices(masked, settings=settings), indices(masked))


def test_orders_are_of_seed_and_number() -> None:
    settings = SampleSettings(order="random")
    orders = settings.own_orders(3, [4, 5], 16)
    assert torch.equal(orders.sort(1).values, torch.arange(16).expand(2, -1))
    assert torch.equal(settings.own_orders(3, [5], 16)[0], orders[1])
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(settings.own_orders(4, [4], 16)[0], orders[0])
    assert torch.equal(SampleSettings().own_orders(3, [4], 16)[0], torch.arange(16))
    assert not torch.equal(SampleSettings(steps=2).own_orders(3, [4], 16)[0], torch.arange(16))
    assert parse_order("2,0,1") == (2, 0, 1) and parse_order("random") == "random"
    assert SampleSettings(order=(1, 0)).describe()["order"] == [1, 0]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("raster", {"steps": 4}, "steps is 4, but this model samples one code after the other"),
        ("raster", {"order": "random"}, "and this model has one order"),
        ("spiral", {"order": "raster"}, "and this model has one order"),
        ("masked", {"order": "random"}, "fills in codes in no order"),
        ("random", {"steps": 17}, "steps is 17, but the image has 16 codes"),
        ("masked", {"steps": 17}, "steps is 17, but the image has 16 codes"),
        ("random", {"order": (1, 0)}, "order has 2 places, and the image 16"),
        ("random", {"order": (1, 1)}, "each place once, and 1 is there twice"),
        ("random", {"order": parse_order("0,0,1")}, "each place once, and 0 is there twice"),
        ("random", {"order": (15, 14)}, "order has 2 places, and the image 16; name all"),
        ("random", {"order": tuple(range(1, 17))}, "places from 0 to 15, not 16"),
        ("random", {"order": (0, -1)}, "places from 0 on, not -1"),
        ("raster", {"step_schedule": "linear"}, "step_schedule is linear, but one code"),
        ("random", {"step_schedule": "linear"}, "say steps as well, or leave it out"),
        ("random", {"confidence_noise": 1.0}, "confidence_noise is 1.0, but only models of att"),
        ("random", {"order": "spiral"}, "order is inwards, raster, random, or all places"),
        ("random", {"steps": 0}, "steps must be at least 1"),
        ("random", {"steps": 2.5}, "steps is a whole number"),
        ("random", {"step_schedule": "square"}, "step_schedule is one of cosine, linear"),
        ("random", {"confidence_noise": -1.0}, "confidence_noise must be 0 or more"),
    ],
)
def test_what_cannot_be_sampled(
    kind: str, settings: dict[str, Any], message: str, model: Any, masked: Any
) -> None:
    models = {"random": model, "masked": masked}
    models |= {"raster": tiny_model(), "spiral": make({}, permuter_config=SPIRAL)}
    with pytest.raises(UserError, match=message):
        indices(models[kind], settings=SampleSettings(**settings))


def test_steps_are_not_compiled_and_methods_of_ones_own_have_no_orders(model: Any) -> None:
    with pytest.raises(UserError, match="leave --compile out"):
        indices(model, settings=SampleSettings(steps=2), compiled=True)
    model.transformer.forward = model.transformer.forward
    try:
        with pytest.raises(UserError, match="has methods or parts of its own"):
            indices(model)
    finally:
        del model.transformer.forward

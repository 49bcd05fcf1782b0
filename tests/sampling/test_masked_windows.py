"""Masked codes of images of other sizes than in training: against loops over whole windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.modules.transformer.orders import left_after
from taming.sampling import Progress, Request, SampleSettings, masked_windows, uniforms
from tests.kit.models import transformer_config
from tests.sampling.test_any_order_windows import codes_of, holes, prompt_in
from tests.support import fill_by_name

Shape = tuple[int, int]
MASK = 23


def make(**gpt: Any) -> Any:
    """A model of masked codes, of 4 x 4 of them."""
    whole = {"vocab_size": 24, "attention": "full", "block_size": 17, **gpt}
    model = instantiate_from_config(transformer_config(whole, cond_drop=0.1))
    fill_by_name(model)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Any:
    return make()


def beginnings(length: int, side: int) -> list[int]:
    """Of windows along a side: half of them apart, and one at each border."""
    return sorted({*range(0, length - side, side // 2 or 1), length - side})


def window_of(at: int, length: int, side: int) -> int:
    centered = min(max(at - side // 2, 0), length - side)
    return min(beginnings(length, side), key=lambda one: (abs(one - centered), one))


def condition_of(request: Request, box: tuple[int, int, int, int], shape: Shape) -> list[int]:
    top, left, h, w = box
    if isinstance(request.condition, Tensor):
        return request.condition[top : top + h, left : left + w].flatten().tolist()
    if request.prompt_in is not None:
        (height, width) = shape
        return list(request.prompt_in((left / width, top / height, w / width, h / height)))
    return list(request.whole)


def logits_at(model: Any, request: Request, codes: Tensor, place: tuple[int, int]) -> Tensor:
    """Logits (2, V) of a place with the condition and without, from the whole window around it."""
    (height, width), (row, column) = codes.shape, place
    h, w = min(4, height), min(4, width)
    top, left = window_of(row, height, h), window_of(column, width, w)
    window = torch.full((4, 4), MASK)
    seen = codes[top : top + h, left : left + w]
    window[:h, :w] = seen.where(seen >= 0, torch.tensor(MASK))
    condition = condition_of(request, (top, left, h, w), (height, width))
    codes_read = window.flatten().tolist()
    rows = [condition + codes_read, [MASK] * len(condition) + codes_read]
    read = torch.tensor(rows)
    before = read.shape[1] - 16
    gpt = model.transformer
    if isinstance(request.condition, Tensor):  # a map has the positions of one of training
        places = [y * 4 + x for y in range(h) for x in range(w)] + list(range(16, 32))
        x = gpt.tok_emb(read) + gpt.pos_emb[0, places]
        for block in gpt.blocks:
            x = block(x)
        logits = gpt.head(gpt.ln_f(x))
    else:
        logits = gpt(read)[0]
    return logits[:, before + (row - top) * 4 + column - left, :20]  # type: ignore[no-any-return]


@torch.no_grad()
def written_out(model: Any, request: Request, shape: Shape, settings: SampleSettings) -> Tensor:
    length = shape[0] * shape[1]
    asked = min(settings.steps or 8, length)
    uniform = uniforms(0, [request.stream], asked * 2 * length).view(asked, 2, length)
    codes = torch.full(shape, -1) if request.known is None else request.known.clone()
    count = int((codes < 0).sum())
    turns = min(asked, count)
    for turn, left in enumerate(left_after(count, turns, settings.step_schedule)):
        sure, new = torch.full((length,), -torch.inf), codes.flatten().clone()
        share = int((codes >= 0).sum()) / length
        for place in (codes.flatten() < 0).nonzero()[:, 0].tolist():
            both = logits_at(model, request, codes, divmod(place, shape[1]))
            both = both if settings.guided else both[:1]
            guided = settings.guide(both, share)[0]
            new[place] = settings.pick(guided[None], uniform[turn, 0, place][None])[0]
            noise = -torch.log(-torch.log(uniform[turn, 1, place]))
            noise = settings.confidence_noise * (1 - (turn + 1) / turns) * noise
            sure[place] = guided.log_softmax(-1)[new[place]] + noise
        chosen = sure.argsort(descending=True)[: int((codes < 0).sum()) - left]
        codes.view(-1)[chosen] = new[chosen]
    return codes.flatten()


@pytest.mark.parametrize("shape", [(5, 7), (9, 4), (2, 3), (3, 8)])
@pytest.mark.parametrize("keep", [None, holes])
def test_every_step_predicts_from_windows(
    model: Any, keep: Callable[[Shape], Tensor] | None, shape: Shape
) -> None:
    known = None if keep is None else keep(shape)
    requests = [Request(n, (n + 1,), n + 1, known=known) for n in range(2)]
    for settings in (SampleSettings(), SampleSettings(steps=3, guidance=2.0, top_k=9)):
        steps: list[Progress] = []
        got = codes_of(model, requests, settings, shape=shape, on_step=steps.append)
        for row, request in zip(got, requests, strict=True):
            assert torch.equal(row, written_out(model, request, shape, settings))
        assert steps[-1].done == steps[-1].total


@pytest.mark.parametrize("shape", [(5, 6), (3, 2)])
@pytest.mark.parametrize("kind", ["map", "scene"])
def test_conditions_move_with_the_windows(kind: str, shape: Shape) -> None:
    model = make(block_size=32 if kind == "map" else 20)
    torch.manual_seed(0)
    condition: Any = prompt_in if kind == "scene" else torch.randint(23, shape)
    request = Request(3, condition, known=holes((5, 7))[: shape[0], : shape[1]])
    settings = SampleSettings(guidance=3.0)
    got = codes_of(model, [request], settings, shape=shape)
    assert torch.equal(got[0], written_out(model, request, shape, settings))


@pytest.mark.parametrize("shape", [(5, 7), (3, 3)])
def test_classes_and_positions_that_act_otherwise(shape: Shape) -> None:
    model = make(rope_grid=[4, 4], adaln_classes=5, n_embd=32, qk_norm=True, norm="rms")
    request = Request(1, (2,), 2, known=holes((5, 7))[: shape[0], : shape[1]])
    got = codes_of(model, [request], shape=shape)
    assert torch.equal(got[0], written_out(model, request, shape, SampleSettings()))


def test_samples_do_not_depend_on_batches_and_memory(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = holes((6, 9))
    requests = [
        Request(n, (n,), n, known=one) for n, one in enumerate((None, known, known.flip(0)))
    ]
    together = codes_of(model, requests, shape=(6, 9))
    assert torch.equal(codes_of(model, requests, shape=(6, 9), batch_size=1), together)
    monkeypatch.setattr(masked_windows, "MOST_READ", 1)
    assert torch.equal(codes_of(model, requests, shape=(6, 9)), together)
    for request, row in zip(requests[1:], together[1:], strict=True):
        assert request.known is not None
        is_kept = request.known.flatten() >= 0
        assert torch.equal(row[is_kept], request.known.flatten()[is_kept])
    assert together.min() >= 0 and together.max() < 20


def test_what_does_not_fit(model: Any) -> None:
    request = Request(0, (3,), 3)
    for given, message in (
        ({"condition": (1, 2, 3)}, "a sequence of 19 tokens, but .* block_size is 17"),
        ({"condition": torch.zeros(4, 6, dtype=torch.long)}, "must be a map .B, 5, 6. or a"),
    ):
        with pytest.raises(UserError, match=message):
            codes_of(model, [replace(request, **given)], shape=(5, 6))

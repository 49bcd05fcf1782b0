from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.inference import Segment, Weights
from taming.sampling import Request, SampleSettings, sample_images, windows
from taming.sampling import estimate as module
from taming.sampling.estimate import announce, estimated_seconds
from tests.kit.models import tiny_model, transformer_config


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock on which the transformer takes 5 seconds per pass and one per token that it reads."""
    logits, now = Weights.logits, [0.0]

    def counted(self: Weights, segments: Sequence[Segment]) -> Tensor:
        now[0] += 5 + sum(segment.tokens.numel() for segment in segments)
        return logits(self, segments)

    monkeypatch.setattr(Weights, "logits", counted)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def kept(rows: int, columns: int, *sampled: slice) -> Tensor:
    known = torch.zeros(rows, columns, dtype=torch.int64)
    known[sampled] = -1
    return known


@pytest.mark.parametrize(
    ("shape", "known", "count"),
    [
        ((4, 4), None, 4),
        ((4, 4), kept(4, 4, slice(2, 4)), 2),  # the lower half
        ((4, 4), kept(4, 4, slice(None), slice(3, 4)), 1),  # a column
        ((11, 14), None, 2),
        ((11, 14), kept(11, 14, slice(None), slice(7, 14)), 1),
        ((11, 14), kept(11, 14, slice(5, 6), slice(6, 7)), 1),  # a single position
        ((5, 4), None, 1),
    ],
)
def test_time_is_that_of_what_is_sampled(
    clock: list[float], shape: tuple[int, int], known: Tensor | None, count: int
) -> None:
    model, settings = tiny_model(), SampleSettings()
    requests = [Request(n, (3,), 3, known=known) for n in range(count)]
    estimated = estimated_seconds(model, requests, settings, 2, shape)
    before = clock[0]
    list(sample_images(model, requests, settings, batch_size=2, shape=shape))
    actual = clock[0] - before
    assert estimated == pytest.approx(actual)


@pytest.mark.parametrize("shape", [(11, 14), (12, 16), (3, 2)])
def test_time_of_masked_codes_is_about_that_of_a_corner(
    clock: list[float], shape: tuple[int, int]
) -> None:
    """Late steps read fewer windows, in which something is still masked."""
    gpt = {"vocab_size": 24, "attention": "full", "block_size": 17}
    model = tiny_model(transformer_config(gpt))
    requests = [Request(0, (3,), 3)]
    estimated = estimated_seconds(model, requests, SampleSettings(steps=6), 1, shape)
    before = clock[0]
    list(sample_images(model, requests, SampleSettings(steps=6), shape=shape))
    assert estimated == pytest.approx(clock[0] - before, rel=0.15)


def any_order_model(order: str = "random") -> Net2NetTransformer:
    gpt = {"vocab_size": 24, "target_positions": True}
    model: Net2NetTransformer = tiny_model(transformer_config(gpt, order=order, cond_drop=0.1))
    return model


@pytest.mark.parametrize(
    ("shape", "known", "count", "settings"),
    [
        ((11, 14), kept(11, 14, slice(5), slice(9)), 2, SampleSettings()),
        ((11, 14), kept(11, 14, slice(5, 6), slice(6, 7)), 1, SampleSettings()),
        ((6, 7), None, 2, SampleSettings(order="random", guidance=2.0)),
        ((6, 7), kept(6, 7, slice(2)), 2, SampleSettings(steps=5)),
        ((4, 9), None, 1, SampleSettings(order=tuple(range(35, -1, -1)))),
        ((3, 2), None, 2, SampleSettings()),
        ((2, 9), kept(2, 9, slice(None), slice(2, 5)), 1, SampleSettings()),
    ],
)
def test_time_is_that_of_windows_in_any_order(
    clock: list[float],
    shape: tuple[int, int],
    known: Tensor | None,
    count: int,
    settings: SampleSettings,
) -> None:
    requests = [Request(n, (3,), 3, known=known) for n in range(count)]
    for model in (any_order_model(), any_order_model("annealed")):  # by rows, if nothing is said
        estimated = estimated_seconds(model, requests, settings, 2, shape)
        before = clock[0]
        list(sample_images(model, requests, settings, batch_size=2, shape=shape))
        assert estimated == pytest.approx(clock[0] - before)


@pytest.mark.parametrize("shape", [(4, 30), (11, 14)])
def test_time_is_that_of_windows_that_do_not_fit_into_memory(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    test_time_is_that_of_what_is_sampled(clock, shape, None, 1)
    enough, clock[0] = clock[0], 0
    monkeypatch.setattr(windows, "CACHE_BYTES", 0)
    test_time_is_that_of_what_is_sampled(clock, shape, None, 1)
    assert clock[0] > enough


def test_time_is_also_that_of_positions_and_of_decoding(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pick, decode = SampleSettings.pick, Net2NetTransformer.decode_to_img

    def slow_pick(self: SampleSettings, logits: Tensor, uniform: Tensor) -> Tensor:
        clock[0] += 7
        return pick(self, logits, uniform)

    def slow_decode(self: Net2NetTransformer, indices: Tensor, shape: Sequence[int]) -> Tensor:
        clock[0] += indices.numel()
        return decode(self, indices, shape)

    monkeypatch.setattr(SampleSettings, "pick", slow_pick)
    monkeypatch.setattr(Net2NetTransformer, "decode_to_img", slow_decode)
    test_time_is_that_of_what_is_sampled(clock, (11, 14), None, 2)


def test_of_very_many_tokens_a_part_is_counted(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, settings, requests = tiny_model(), SampleSettings(), [Request(0, (3,), 3)]
    whole = estimated_seconds(model, requests, settings, 1, (60, 48))
    monkeypatch.setattr(module, "MOST_COUNTED", 24 * 24)
    assert estimated_seconds(model, requests, settings, 1, (60, 48)) == pytest.approx(whole, 0.1)
    announce(model, requests, settings, 1, (2**12, 2**12), count=3)  # counted out, for minutes
    said = r"8192 x 8192 pixels are 16,777,216 tokens for each of 3 images: about \d+ days\n"
    assert re.fullmatch(said, capsys.readouterr().out)


def test_of_very_many_tokens_in_any_order_a_part_is_counted(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, known = any_order_model(), kept(40, 40, slice(10, 40))
    requests = [Request(0, (3,), 3, known=known)]
    for settings in (SampleSettings(), SampleSettings(order=tuple(range(1600)), steps=1500)):
        whole = estimated_seconds(model, requests, settings, 1, (40, 40))
        with monkeypatch.context() as patch:
            patch.setattr(module, "MOST_COUNTED", 1000)
            part = estimated_seconds(model, requests, settings, 1, (40, 40))
        assert part == pytest.approx(whole, rel=0.2) and part != whole


def test_all_tokens_at_once_take_the_time_of_one_batch(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    model.pkeep = 0.0
    decode = model.decode_to_img

    def slow(*args: object) -> Tensor:
        clock[0] += 3
        return decode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "decode_to_img", slow)
    requests = [Request(n, (3,), 3) for n in range(4)]
    assert estimated_seconds(model, requests, SampleSettings(), 2, (4, 4)) == 6


def test_nothing_to_sample_takes_no_time() -> None:
    assert estimated_seconds(tiny_model(), [], SampleSettings(), 2, (4, 4)) == 0


def test_the_faster_of_two_passes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 9.0, 20.0, 21.0])  # the first one warms up
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(times)))
    assert module._seconds_of_pass(Weights(tiny_model().transformer), 1, 2) == 1

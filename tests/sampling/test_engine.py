from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from taming.data.helper_types import WHOLE
from taming.errors import UserError
from taming.kernel_choice import KERNELS, PACKED
from taming.modules.packed_weight import PackedWeight
from taming.modules.transformer import own_methods
from taming.modules.transformer.token_choice import sample_token
from taming.sampling import (
    Progress,
    Request,
    SampleSettings,
    sample_images,
    sample_sliding_window,
    uniforms,
)
from taming.sampling.requests import condition_indices, sampled_of_first
from tests.kit.models import SPIRAL, tiny_model, transformer_config
from tests.support import assert_close

GREEDY = SampleSettings(temperature=0)
REQUESTS = [Request(n, (label,), label) for label in (3, 1) for n in range(3)]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What linear layers of frozen models are computed with, however small they are."""
    monkeypatch.setenv("TAMING_KERNEL", request.param)
    return str(request.param)


def test_samples_come_in_order_whatever_the_batch(kernel: str) -> None:
    model = tiny_model().requires_grad_(False)
    alone = list(sample_images(model, REQUESTS, batch_size=1))
    assert [(s.label, s.number) for s in alone] == [(r.label, r.number) for r in REQUESTS]
    for size in (2, 4, 25):
        for one, other in zip(alone, sample_images(model, REQUESTS, batch_size=size), strict=True):
            assert torch.equal(one.indices, other.indices)
            assert_close(one.image, other.image)
    assert len({tuple(s.indices.tolist()) for s in alone}) == len(REQUESTS)


def test_filled_batches_have_one_size() -> None:
    model, rows = tiny_model(), []

    def note(progress: Progress) -> None:
        rows.append(len(progress.indices))

    filled = list(sample_images(model, REQUESTS, batch_size=4, filled=True, on_step=note))
    assert set(rows) == {4}
    for one, other in zip(sample_images(model, REQUESTS, batch_size=4), filled, strict=True):
        assert (one.number, one.label) == (other.number, other.label)
        assert torch.equal(one.indices, other.indices)
        assert_close(one.image, other.image)


def test_a_sample_depends_on_its_seed_number_and_label_alone() -> None:
    model = tiny_model()
    expected = list(sample_images(model, REQUESTS, seed=4))
    some = list(sample_images(model, [REQUESTS[5], REQUESTS[1]], seed=4))
    assert torch.equal(some[0].indices, expected[5].indices)
    assert torch.equal(some[1].indices, expected[1].indices)
    other = next(iter(sample_images(model, REQUESTS, seed=5)))
    assert not torch.equal(other.indices, expected[0].indices)


def test_greedy_is_the_models_own_greedy(kernel: str) -> None:
    model = tiny_model().requires_grad_(False)
    samples = list(sample_images(model, REQUESTS[2:4], SampleSettings(temperature=0)))
    is_packed = isinstance(model.transformer.head.weight, PackedWeight)
    assert is_packed == (kernel == PACKED)
    c = torch.tensor([[3], [1]])
    logits = model.transformer(torch.cat((c, torch.stack([s.indices for s in samples])), 1)[:, :-1])
    expected = sample_token(logits[0][..., :20].flatten(0, 1)).view(2, 16)
    assert torch.equal(torch.stack([s.indices for s in samples]), expected)
    image = model.decode_to_img(expected, (2, 4, 4, 4))
    assert_close(torch.stack([s.image for s in samples]), image)
    assert not samples[0].image.requires_grad


def test_no_token_beyond_the_codebook() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.transformer.head.weight[20:] = 0
        model.transformer.head.weight[:20] *= 0.01
    settings = SampleSettings(temperature=100.0)
    tokens = [s.indices for s in sample_images(model, REQUESTS, settings)]
    assert torch.stack(tokens).max() < 20


def test_permuted_models_decode_their_own_order() -> None:
    model = tiny_model(transformer_config(permuter_config=SPIRAL))
    plain = tiny_model()
    permuted, straight = (next(iter(sample_images(m, REQUESTS))) for m in (model, plain))
    assert torch.equal(permuted.indices, straight.indices)
    raster = model.permuter(permuted.indices[None], reverse=True)
    assert_close(permuted.image[None], plain.decode_to_img(raster, (1, 4, 4, 4)))


def test_pkeep_zero_reads_the_condition_alone() -> None:
    model = tiny_model(transformer_config(pkeep=0.0))
    steps: list[int] = []
    settings = SampleSettings(temperature=0)
    request = Request(0, (2,), 2)
    sample = next(
        iter(sample_images(model, [request], settings, on_step=lambda _: steps.append(0)))
    )
    logits = model.transformer(torch.full((1, 16), 2))[0][..., :20]
    assert torch.equal(sample.indices, logits[0].argmax(-1))
    assert not steps


def test_steps_are_reported() -> None:
    seen: list[tuple[int, int]] = []

    def note(progress: Progress) -> None:
        seen.append((progress.done, progress.total))

    list(sample_images(tiny_model(), REQUESTS[:3], batch_size=2, on_step=note))
    assert seen == [(n + 1, 16) for n in range(16)] * 2


@pytest.mark.parametrize("shape", [(4, 4), (5, 6)])
def test_steps_count_what_is_sampled(shape: tuple[int, int]) -> None:
    seen: list[tuple[int, int]] = []

    def note(progress: Progress) -> None:
        seen.append((progress.done, progress.total))

    known = torch.zeros(shape, dtype=torch.int64)
    known[1, :2], known[3, 3] = -1, -1
    requests = [replace(request, known=known) for request in REQUESTS[:2]]
    model = tiny_model()
    list(sample_images(model, requests, shape=shape, on_step=note))
    assert sorted(set(seen)) == [(0, 3), (1, 3), (2, 3), (3, 3)] and seen == sorted(seen)
    seen.clear()
    list(sample_images(model, [replace(REQUESTS[0], known=known.abs())], shape=shape, on_step=note))
    assert not seen  # there is nothing to do
    for sample in sample_images(model, requests, shape=shape):
        sample.indices.add_(1)  # as any tensor


def test_positions_that_any_image_lacks_are_steps() -> None:
    known = torch.tensor([[5, -1, 7, -1], [5, 1, -1, -1]])
    assert sampled_of_first(known, range(4)) == [0, 0, 1, 2, 3]
    assert sampled_of_first(known, [3, 0, 1, 2]) == [0, 1, 1, 2, 3]
    assert sampled_of_first(None, range(3)) == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # of the first stage
def test_bf16_samples_images_too(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    sample = next(iter(sample_images(model, REQUESTS, dtype=torch.bfloat16)))
    assert sample.image.dtype == torch.float32
    assert sample.image.isfinite().all()


@pytest.mark.parametrize(("name", "shape"), [("CachedDecoder", (4, 4)), ("Weights", (4, 5))])
def test_options_reach_what_computes(
    name: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given, original = tiny_model(), [], getattr(own_methods, name)

    def note(*arguments: Any, compiled: bool = False) -> Any:
        assert 4 in arguments  # rows
        given.extend((a, compiled) for a in arguments if isinstance(a, torch.dtype))
        return original(*arguments)

    monkeypatch.setattr(own_methods, name, note)
    monkeypatch.setattr(model, "warn_of_random_weights", lambda: given.append("warned"))
    options: dict[str, Any] = {"dtype": torch.bfloat16, "compiled": True, "batch_size": 4}
    list(sample_images(model, REQUESTS, shape=shape, **options))
    assert given == ["warned", (torch.bfloat16, name == "CachedDecoder")]


def test_no_requests() -> None:
    assert list(sample_images(tiny_model(), [])) == []


def test_prompts_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="block_size is 16"):
        list(sample_images(tiny_model(), [Request(0, (1, 2))]))


def mapped_model(**changes: Any) -> Any:
    """A model whose condition is an image of the first stage, as a map."""
    gpt = {"vocab_size": 23, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 16}
    config = {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt}
    maps = {"cond_stage_config": "__is_first_stage__", "cond_stage_key": "sketch"}
    return tiny_model(transformer_config(**maps, transformer_config=config, **changes))


def test_conditions_that_are_maps() -> None:
    model = mapped_model()
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    condition = condition_indices(model, picture)
    assert condition.shape == (1, 4, 4)
    sample = next(sample_images(model, [Request(0, condition=condition[0])], GREEDY))
    flat = condition.flatten(1)
    expected = model.sample(flat[:, :0], flat, 16)
    assert torch.equal(sample.indices, expected[0])
    wide = condition_indices(model, torch.cat((picture, picture), dim=3))
    request = Request(0, condition=wide[0])
    sample = next(sample_images(model, [request], GREEDY, shape=(4, 8)))
    grid = sample_sliding_window(model.transformer, wide, (4, 8), 4, temperature=0, n_codes=20)
    assert torch.equal(sample.indices, grid.flatten())
    assert sample.image.shape == (3, 8, 16)
    with pytest.raises(UserError, match="must be a map"):
        list(sample_images(model, [request], shape=(8, 8)))


def test_another_size_depends_on_no_batch_either(kernel: str) -> None:
    model = tiny_model(transformer_config()).requires_grad_(False)
    together = list(sample_images(model, REQUESTS, shape=(5, 6), batch_size=4))
    alone = list(sample_images(model, REQUESTS[4:], shape=(5, 6)))
    assert torch.equal(together[5].indices, alone[1].indices)
    assert together[0].image.shape == (3, 10, 12)
    settings = [s.indices for s in sample_images(model, REQUESTS[:1], shape=(5, 6), seed=1)]
    assert not torch.equal(settings[0], together[0].indices)


def test_permuted_models_have_one_size() -> None:
    model = tiny_model(transformer_config(permuter_config=SPIRAL))
    with pytest.raises(UserError, match="order SpiralOut.*leave the size out"):
        list(sample_images(model, REQUESTS, shape=(5, 6)))
    assert len(list(sample_images(model, REQUESTS, shape=(4, 4)))) == 6


@pytest.mark.parametrize("changes", [{}, {"permuter_config": SPIRAL}, {"pkeep": 0.0}])
def test_known_indices_are_kept(changes: dict[str, Any]) -> None:
    model = tiny_model(transformer_config(**changes))
    known = torch.full((4, 4), -1)
    known[:2] = torch.arange(8).view(2, 4)
    known[3, 3] = 19
    requests = [Request(0, (3,), 3, known=known), Request(1, (3,), 3)]
    first, second = sample_images(model, requests)
    grid = model.permuter(first.indices[None], reverse=True).view(4, 4)
    assert torch.equal(grid[known >= 0], known[known >= 0])
    free = next(sample_images(model, [Request(1, (3,), 3)]))
    assert torch.equal(second.indices, free.indices)


def test_known_indices_of_another_size() -> None:
    for height, width in ((3, 4), (2, 8)):
        request = Request(0, (1,), 1, known=torch.zeros(height, width, dtype=torch.long))
        message = rf"known indices are \({height}, {width}\), but the image is \(4, 4\)"
        with pytest.raises(UserError, match=message):
            list(sample_images(tiny_model(), [request]))


@pytest.mark.parametrize("shape", [(4, 4), (5, 6)])
def test_guidance_goes_beyond_the_condition(shape: tuple[int, int]) -> None:
    model = tiny_model(transformer_config(cond_drop=0.1))
    samples = {
        scale: next(
            sample_images(
                model, REQUESTS[:1], SampleSettings(guidance=scale), shape=shape, batch_size=1
            )
        ).indices
        for scale in (0.0, 1.0, 1.0001, 4.0)
    }
    assert torch.equal(samples[1.0], samples[1.0001])
    assert not torch.equal(samples[4.0], samples[1.0])
    free = next(sample_images(model, [Request(0, (model.null_token,), 3)], shape=shape))
    assert torch.equal(samples[0.0], free.indices)


@pytest.mark.parametrize("pkeep", [1.0, 0.0])
def test_every_token_has_its_guidance_and_its_random_number(pkeep: float) -> None:
    model, request = tiny_model(transformer_config(cond_drop=0.1, pkeep=pkeep)), REQUESTS[1]
    settings = SampleSettings(guidance=4.0, guidance_schedule="linear")
    indices = next(sample_images(model, [request], settings)).indices
    conditions = torch.tensor([[3], [model.null_token]])
    seen = torch.cat((conditions, indices[:-1].expand(2, -1)), 1)
    with torch.no_grad():
        logits = model.transformer(seen if pkeep else conditions.expand(2, 16))[0][..., :20]
    numbers = uniforms(0, [request.stream], 16)
    for n, token in enumerate(indices):
        assert settings.pick(settings.guide(logits[:, n], n / 16), numbers[:, n]) == token


def test_windows_have_the_engine_s_random_numbers_and_steps() -> None:
    model, done = tiny_model(), []

    def note(progress: Progress) -> None:
        done.append((progress.done, progress.total))

    sample = next(sample_images(model, REQUESTS[1:2], shape=(5, 6), on_step=note))
    numbers = uniforms(0, [REQUESTS[1].stream], 30)
    gpt, c = model.transformer, torch.tensor([[3]])
    grid = sample_sliding_window(gpt, c, (5, 6), 4, uniform=numbers, n_codes=20)
    assert torch.equal(sample.indices, grid.flatten())
    assert done[0] == (1, 30) and done[-1] == (30, 30)


def test_guidance_needs_a_model_that_was_trained_for_it() -> None:
    with pytest.raises(UserError, match="trained with cond_drop"):
        list(sample_images(tiny_model(), REQUESTS, SampleSettings(guidance=2.0)))


def test_windows_of_scenes_have_prompts_of_their_own() -> None:
    model, seen = tiny_model(), []

    def prompt_in(box: tuple[float, float, float, float]) -> tuple[int]:
        seen.append(box)
        return (3,)

    scene = Request(0, prompt_in, 1)
    sample = next(sample_images(model, [scene], shape=(6, 8)))
    other = next(sample_images(model, [Request(0, (3,), 1)], shape=(6, 8)))
    assert torch.equal(sample.indices, other.indices)
    boxes = {(left / 8, top / 6, 4 / 8, 4 / 6) for left in range(5) for top in range(3)}
    assert set(seen) == boxes | {WHOLE}
    seen.clear()
    next(sample_images(model, [scene]))
    assert set(seen) == {WHOLE}
    guided, settings = tiny_model(transformer_config(cond_drop=0.1)), SampleSettings(guidance=3.0)
    pair = (
        next(sample_images(guided, [request], settings, shape=(4, 8))).indices
        for request in (scene, Request(0, (3,), 1))
    )
    assert torch.equal(*pair)


@pytest.mark.parametrize(
    ("shape", "guidance", "pkeep"),
    [((4, 4), 1.0, 1.0), ((5, 6), 1.0, 1.0), ((4, 4), 2.0, 1.0), ((4, 4), 1.0, 0.0)],
)
def test_samples_of_several_k_are_those_of_each_k(
    shape: tuple[int, int], guidance: float, pkeep: float
) -> None:
    model = tiny_model(transformer_config(pkeep=pkeep, cond_drop=0.0 if guidance == 1 else 0.1))
    mixed = SampleSettings(top_k=(1, 3, 20), top_p=0.9, guidance=guidance)
    drawn = list(sample_images(model, REQUESTS, mixed, seed=6, shape=shape, batch_size=4))
    for sample, request in zip(drawn, REQUESTS, strict=True):
        assert [sample.top_k] == mixed.own_top_k(6, [request.stream])
        alone = replace(mixed, top_k=sample.top_k)
        (expected,) = sample_images(model, [request], alone, seed=6, shape=shape)
        assert torch.equal(sample.indices, expected.indices) and expected.top_k is None
    assert len({sample.top_k for sample in drawn}) > 1


def test_grids_of_several_k() -> None:
    gpt = tiny_model().transformer
    options: dict[str, Any] = {"batch_size": 6, "seed": 2, "n_codes": 32}
    mixed = sample_sliding_window(gpt, None, (5, 5), 4, top_k=(1, 9), **options)
    own = SampleSettings(top_k=(1, 9)).own_top_k(2, range(6))
    assert own is not None and set(own) == {1, 9}
    for k in (1, 9):
        alone = sample_sliding_window(gpt, None, (5, 5), 4, top_k=k, **options)
        for n in (n for n in range(6) if own[n] == k):
            assert torch.equal(mixed[n], alone[n])

from __future__ import annotations

import pytest
import torch

from taming.errors import UserError
from taming.modules.transformer.decoding import draw
from taming.sampling import Request, SampleSettings, sample_images
from tests.sampling.tiny import SPIRAL, tiny_model, transformer_config
from tests.support import assert_close

REQUESTS = [Request(n, (label,), label) for label in (3, 1) for n in range(3)]


def test_samples_come_in_order_whatever_the_batch() -> None:
    model = tiny_model()
    alone = list(sample_images(model, REQUESTS, batch_size=1))
    assert [(s.label, s.number) for s in alone] == [(r.label, r.number) for r in REQUESTS]
    for size in (2, 4, 25):
        for one, other in zip(alone, sample_images(model, REQUESTS, batch_size=size), strict=True):
            assert torch.equal(one.indices, other.indices)
            assert_close(one.image, other.image)
    assert len({tuple(s.indices.tolist()) for s in alone}) == len(REQUESTS)


def test_a_sample_depends_on_its_seed_number_and_label_alone() -> None:
    model = tiny_model()
    expected = list(sample_images(model, REQUESTS, seed=4))
    some = list(sample_images(model, [REQUESTS[5], REQUESTS[1]], seed=4))
    assert torch.equal(some[0].indices, expected[5].indices)
    assert torch.equal(some[1].indices, expected[1].indices)
    other = next(iter(sample_images(model, REQUESTS, seed=5)))
    assert not torch.equal(other.indices, expected[0].indices)


def test_greedy_is_the_models_own_greedy() -> None:
    model = tiny_model()
    samples = list(sample_images(model, REQUESTS[2:4], SampleSettings(temperature=0)))
    c = torch.tensor([[3], [1]])
    logits = model.transformer(torch.cat((c, torch.stack([s.indices for s in samples])), 1)[:, :-1])
    expected = draw(logits[0][..., :20].flatten(0, 1)).view(2, 16)
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
    drawn = [s.indices for s in sample_images(model, REQUESTS, settings)]
    assert torch.stack(drawn).max() < 20


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
        iter(sample_images(model, [request], settings, on_step=lambda *a: steps.append(0)))
    )
    logits = model.transformer(torch.full((1, 16), 2))[0][..., :20]
    assert torch.equal(sample.indices, logits[0].argmax(-1))
    assert not steps


def test_steps_are_reported() -> None:
    seen: list[tuple[int, int]] = []
    list(sample_images(tiny_model(), REQUESTS[:3], batch_size=2, on_step=lambda *a: seen.append(a)))
    assert seen == [(n + 1, 16) for n in range(16)] * 2


def test_bf16_draws_images_too() -> None:
    sample = next(iter(sample_images(tiny_model(), REQUESTS, dtype=torch.bfloat16)))
    assert sample.image.dtype == torch.float32
    assert sample.image.isfinite().all()


def test_no_requests() -> None:
    assert list(sample_images(tiny_model(), [])) == []


def test_prompts_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="block_size is 16"):
        list(sample_images(tiny_model(), [Request(0, (1, 2))]))

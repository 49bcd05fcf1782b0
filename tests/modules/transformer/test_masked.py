"""Masked codes: which are drawn, and which are filled in first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from taming.errors import UserError
from taming.modules.transformer.decoding import CachedDecoder
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.masked import (
    Turn,
    code_logits,
    confidence_in,
    continued,
    fill_in,
    gumbel,
    most_confident,
    random_masks,
)
from taming.modules.transformer.mingpt import sample_with_past
from taming.modules.transformer.orders import left_after
from taming.modules.transformer.token_choice import sample_token
from tests.support import fill_by_name

MASK = 20
ROPE = {"rope_grid": (3, 4), "qk_norm": True, "adaln_classes": 6}


def make(**options: Any) -> GPT:
    sizes = {"vocab_size": 21, "block_size": 13, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(**{**sizes, "attention": "full", **options})
    fill_by_name(model)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("options", [{}, ROPE], ids=["plain", "rope"])
def test_every_position_sees_all_others(options: dict[str, Any]) -> None:
    model, idx = make(**options), torch.arange(13)[None]
    logits = model(idx)[0]
    changed = idx.clone()
    changed[0, 12] = MASK
    assert (model(changed)[0] - logits).abs().amax(-1).min() > 1e-4
    got = code_logits(Weights(model), idx[:, :1], idx[:, 1:])
    torch.testing.assert_close(got, logits[:, 1:], rtol=1e-4, atol=1e-4)


def test_masks_follow_the_cosine() -> None:
    torch.manual_seed(0)
    counts = random_masks(4000, 16).sum(1)
    assert counts.min() == 1 and counts.max() == 16
    # P(count > 8) = P(cos(pi / 2 u) > 1 / 2) = 2 / 3
    assert abs((counts > 8).float().mean() - 2 / 3) < 0.03
    assert abs(random_masks(4000, 16).float().mean(0) - 0.67).max() < 0.04


def test_the_most_confident_are_kept() -> None:
    confidence = torch.tensor([[0.1, 0.9, 0.5, 0.7], [4.0, 3.0, 2.0, 1.0]])
    chosen = most_confident(confidence, torch.tensor([2, 1]))
    assert chosen.tolist() == [[False, True, False, True], [True, False, False, False]]
    logits = torch.randn(1, 2, 5)
    expected = logits.log_softmax(-1)[0, [0, 1], [3, 4]] + 1
    torch.testing.assert_close(confidence_in(torch.tensor([[3, 4]]), logits, 1.0)[0], expected)
    noise = gumbel(torch.rand(100_000, generator=torch.Generator().manual_seed(0)))
    assert abs(noise.mean() - 0.5772) < 0.02 and gumbel(torch.tensor([0.0, 1.0])).isfinite().all()


def test_steps_read_what_the_steps_before_have_filled_in() -> None:
    """As a loop over whole passes, with kept codes that differ between images."""
    model, prompt = make(), torch.tensor([[3], [5]])
    known = torch.full((2, 12), -1)
    known[0, 3:6], known[1, 11] = 9, 4
    turns: list[Turn] = []
    dones: list[int] = []

    def pick(logits: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        turns.append(turn)
        new = logits[..., :20].argmax(-1)
        return new, confidence_in(new, logits[..., :20], 0.0)

    codes = fill_in(
        Weights(model),
        prompt,
        known,
        pick,
        mask_token=MASK,
        steps=3,
        on_step=lambda _, n: dones.append(n),
    )
    assert dones[-1] == 12 and [turn.number for turn in turns] == [0, 1, 2]
    shares = [list(turn.shares) for turn in turns]  # 3 and 1 are known, and then what was filled in
    assert shares == [pytest.approx([k / 12 for k in row]) for row in ([3, 1], [4, 2], [7, 6])]
    assert [turn.noise.flatten().tolist() for turn in turns[:2]] == [
        pytest.approx([left, left]) for left in (2 / 3, 1 / 3)
    ]
    assert turns[2].noise.tolist() == [[0.0], [0.0]]
    for row, sizes in enumerate(([1, 3, 5], [1, 4, 6])):  # cosine of 9 and of 11
        expected = known[row].clone()
        for size in sizes:
            read = expected.where(expected >= 0, torch.tensor(MASK))
            logits = model(torch.cat((prompt[row], read))[None])[0][0, 1:, :20]
            best = logits.log_softmax(-1).max(-1)
            order = best.values.masked_fill(expected >= 0, -torch.inf).argsort(descending=True)
            expected[order[:size]] = best.indices[order[:size]]
        assert torch.equal(codes[row], expected)


def test_noise_fades_in_as_many_steps_as_an_image_takes() -> None:
    """Also where fewer codes are masked than steps were asked for, and beside other images."""
    model, turns = make(), list[Turn]()
    known = torch.full((3, 12), 9)
    known[0, :2], known[1] = -1, -1  # two are masked, all, and none

    def pick(logits: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        turns.append(turn)
        return logits[..., :20].argmax(-1), logits.amax(-1)

    prompt = torch.tensor([[3], [5], [4]])
    fill_in(Weights(model), prompt, known, pick, mask_token=MASK, steps=4)
    noise = torch.stack([turn.noise[:, 0] for turn in turns])  # (4, 3)
    assert noise[:, 0].tolist() == [0.5, 0, 0, 0] and noise[:, 1].tolist() == [0.75, 0.5, 0.25, 0]
    shares = [turn.shares[0] for turn in turns]
    assert shares == pytest.approx([10 / 12, 11 / 12, 1, 1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [3, 6, 10])
def test_continued_codes_follow_the_written_out_steps(steps: int, seed: int) -> None:
    """A GPT's own continuation: noise fades to none in as many steps as it takes."""
    model = make()
    with torch.no_grad():  # what is no code is likely here and there, which is no doubt of a code
        model.head.weight[20] *= 9
    before, prompt = torch.arange(12 - steps)[None], torch.tensor([[3]])
    told: list[int] = []
    torch.manual_seed(seed)
    got = continued(
        Weights(model),
        before,
        prompt,
        steps,
        lambda logits: logits,
        n_codes=20,
        mask_token=MASK,
        random=True,
        on_code=told.append,
    )
    assert told == list(range(steps))
    torch.manual_seed(seed)
    codes, turns = torch.cat((before[0], torch.full((steps,), -1))), min(steps, 8)
    for turn, left in enumerate(left_after(steps, turns)):
        read = codes.where(codes >= 0, torch.tensor(MASK))
        logits = model(torch.cat((prompt[0], read))[None])[0][0, 1:, :20]
        uniform = torch.rand(2, 12)
        new = sample_token(logits, uniform[0])
        noise = 4.5 * (1 - (turn + 1) / turns) * -torch.log(-torch.log(uniform[1]))
        sure = logits.log_softmax(-1)[torch.arange(12), new] + noise
        count = int((codes < 0).sum()) - left
        places = sure.masked_fill(codes >= 0, -torch.inf).argsort(descending=True)[:count]
        codes[places] = new[places]
    assert torch.equal(got[0], codes[12 - steps :])


def test_no_token_after_the_other() -> None:
    model = make()
    for call in (
        lambda: CachedDecoder(model, 1, 4),
        lambda: sample_with_past(torch.zeros(1, 1, dtype=torch.long), model, 2),
        lambda: model.forward_with_past(torch.zeros(1, 1, dtype=torch.long)),
    ):
        with pytest.raises(UserError, match="attention: full fills in masked codes"):
            call()
    with pytest.raises(UserError, match="n_unmasked is 2, but with attention: full"):
        make(n_unmasked=2)
    causal = make(attention="causal")
    with pytest.raises(UserError, match="this one's is not"):
        code_logits(Weights(causal), torch.zeros(1, 1).long(), torch.zeros(1, 3).long())

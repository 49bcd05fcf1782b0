"""In which order a transformer is trained, what validation measures, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.models.reading_order import ReadingOrder, fixed_masks, fixed_orders
from taming.run_length import RunLength
from tests.kit.models import SPIRAL, transformer_config
from tests.kit.training import fit
from tests.support import fill_by_name

TOLD = {"target_positions": True}
FULL = {"attention": "full", "block_size": 17}
CODES = torch.randint(20, (6, 4, 4), generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6)[:, None] % 5


def make(gpt: dict[str, Any] | None = None, **changes: Any) -> Any:
    model = instantiate_from_config(transformer_config(gpt, **changes))
    fill_by_name(model.transformer)
    return model


def test_training_reads_each_image_in_an_order_of_its_own() -> None:
    model = make(TOLD, order="random").train()
    logits, target = model.predict(CODES.flatten(1), LABELS)
    assert torch.equal(target.sort(1).values, CODES.flatten(1).sort(1).values)
    assert not torch.equal(target, CODES.flatten(1))
    other = model.predict(CODES.flatten(1), LABELS)[1]
    assert not torch.equal(target, other)  # of each step its own
    torch.manual_seed(5)
    first = model.predict(CODES.flatten(1), LABELS)[0]
    torch.manual_seed(5)
    assert torch.equal(model.predict(CODES.flatten(1), LABELS)[0], first)
    assert logits.shape == (6, 16, 23)


def test_each_code_is_predicted_at_its_place_from_those_before_it() -> None:
    """By rows, and with the last code first, against a pass that is written out."""
    model = make(TOLD, order="random").eval()
    codes, order = CODES[:1].flatten(1), torch.arange(15, -1, -1)[None]
    logits, target = model._predict_in(order, codes, LABELS[:1])
    assert torch.equal(target, codes.flip(1))
    read = torch.cat((LABELS[:1], codes.flip(1)), dim=1)[:, :-1]
    gpt, places = model.transformer, torch.cat((torch.zeros(1).long(), 1 + order[0]))
    x = gpt.tok_emb(read) + gpt.pos_emb[:, places[:-1]] + gpt.target_emb[:, places[1:]]
    for block in gpt.blocks:
        x = block(x)
    torch.testing.assert_close(logits, gpt.head(gpt.ln_f(x)))
    assert gpt.pos_emb.shape[1] == gpt.target_emb.shape[1] == 17


def test_rows_come_back_between_two_shares_of_the_run() -> None:
    annealed, run = ReadingOrder("annealed", (0.5, 0.75)), RunLength(400)
    shares = [annealed.raster_share(step, run) for step in (0, 200, 250, 300, 399)]
    assert shares == [0, 0, 0.5, 1, 1]
    assert ReadingOrder("annealed", ("25%", 300)).raster_share(200, run) == 0.5
    assert ReadingOrder("random").raster_share(399, run) == 0
    assert ReadingOrder("annealed", (0.5, 0.75), 0.4).raster_share(250, run) == 0.2
    assert ReadingOrder("random", by_rows=0.25).raster_share(0, RunLength()) == 0.25
    codes = CODES.flatten(1).repeat(200, 1)
    some = ReadingOrder("random", by_rows=0.25).draw(codes, 0.25)
    assert abs((some == torch.arange(16)).all(1).float().mean() - 0.25) < 0.05
    rows = (annealed.draw(codes, 0.5) == torch.arange(16)).all(1).float().mean()
    assert abs(rows - 0.5) < 0.05
    assert (annealed.draw(codes, 1.0) == torch.arange(16)).all()
    with pytest.raises(UserError, match="anneal follows the length of a run, and this one has no"):
        annealed.raster_share(0, RunLength())
    with pytest.raises(UserError, match="order is one of raster, permuter, random, annealed, not"):
        ReadingOrder("spiral")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must not be before the first"):
        ReadingOrder("annealed", (0.5, 0.2))
    with pytest.raises(UserError, match="the second must not be before the first"):
        ReadingOrder("annealed", (300, "25%")).raster_share(0, run)


@pytest.mark.parametrize("anneal", [(0.5, 1), (0.5, 1.0), (200, 1.0), ("50%", "100%"), (200, 400)])
def test_the_end_of_a_run_is_a_share_of_it(anneal: Any) -> None:
    (annealed, run) = make(TOLD, order="annealed", anneal=list(anneal)).reading, RunLength(400)
    shares = [annealed.raster_share(step, run) for step in (0, 200, 300, 399)]
    assert shares == [0, 0, 0.5, 199 / 200]


def test_one_step_and_no_share_stay_steps() -> None:
    for anneal in ((0, 1), (1, 1)):
        shares = [ReadingOrder("annealed", anneal).raster_share(s, RunLength(9)) for s in (0, 2)]
        assert shares == [0, 1]
    whole = ReadingOrder("annealed", (0.0, 1.0))
    assert [whole.raster_share(step, RunLength(4)) for step in range(4)] == [0, 0.25, 0.5, 0.75]
    with pytest.raises(UserError, match="above 0 to 1"):
        make(TOLD, order="annealed", anneal=[0.5, 1.5])


def test_a_share_is_read_by_rows_in_every_step(tmp_path: Path) -> None:
    model = make(TOLD, order="random", raster_share=1.0)
    orders: list[Tensor] = []
    predict_in = model._predict_in

    def note(order: Tensor, *arguments: Tensor) -> Any:
        if model.training:
            orders.append(order)
        return predict_in(order, *arguments)

    model._predict_in = note
    fit(model, {"codes": CODES, "condition_codes": LABELS}, tmp_path, steps=2)
    assert len(orders) == 2 and all((order == torch.arange(16)).all() for order in orders)


@pytest.mark.parametrize(
    ("order", "by_rows", "own"),
    [
        ("random", None, "random"),
        ("random", 1.0, "raster"),
        ("annealed", None, "raster"),
        ("annealed", 0.25, "random"),
    ],
)
def test_validation_measures_by_rows_and_in_fixed_random_orders(
    order: str, by_rows: float | None, own: str, tmp_path: Path
) -> None:
    anneal = {"anneal": [1, 3]} if order == "annealed" else {}
    model = make(TOLD, order=order, raster_share=by_rows, **anneal)
    model.learning_rate = 1e-3
    shares: list[float] = []
    predict = model.predict

    def note(*arguments: Tensor) -> Any:
        if model.training:
            shares.append(model.raster_share)
        return predict(*arguments)

    model.predict = note
    columns = {"codes": CODES, "condition_codes": LABELS}
    trainer = fit(model, columns, tmp_path, steps=3)
    last = float(own == "raster") if by_rows is None else by_rows
    assert shares == ([0.0, 0.0, last / 2] if order == "annealed" else [last] * 3)
    logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
    assert model.logged_names() <= set(trainer.callback_metrics)
    model.eval()
    codes, labels = CODES[:2].flatten(1), LABELS[:2]
    state = torch.get_rng_state()
    expected = {"raster": model.predict(codes, labels)}
    expected["random"] = model._predict_in(fixed_orders(codes, 0), codes, labels)
    assert torch.equal(torch.get_rng_state(), state)
    for name, (logits, target) in expected.items():
        loss = F.cross_entropy(logits.mT, target)
        assert logged[f"val/loss_{name}"] == pytest.approx(float(loss), rel=1e-5)
    assert logged["val/loss"] == logged[f"val/loss_{own}"]
    assert logged["val/loss_raster"] != logged["val/loss_random"]


def test_masked_codes_alone_are_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(FULL, cond_drop=0.5).train()
    read: list[Tensor] = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    codes = CODES.flatten(1)
    loss = model.shared_step({"codes": CODES, "condition_codes": LABELS})
    masks = read[0][:, 1:] == 22
    assert torch.equal(read[0][:, 1:][~masks], codes[~masks]) and 0 < masks.sum() < masks.numel()
    assert (read[0][:, 0] == 22).any() and (read[0][:, 0] != 22).any()  # dropped conditions
    logits = model.transformer(read[0])[0][:, 1:]
    torch.testing.assert_close(loss, F.cross_entropy(logits[masks], codes[masks]))
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("a GPU's numbers"))
    assert torch.equal(fixed_masks(codes, 3), fixed_masks(codes, 3))
    assert not torch.equal(fixed_masks(codes, 3), fixed_masks(codes, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_of_masked_codes_is_always_the_same(tmp_path: Path) -> None:
    model = make(FULL)
    model.learning_rate = 1e-3
    trainer = fit(model, {"codes": CODES, "condition_codes": LABELS}, tmp_path, steps=3)
    codes = CODES[:2].flatten(1)
    logits, target = model.eval()._predict_masked(codes, LABELS[:2], fixed_masks(codes, 0))
    loss = float(F.cross_entropy(logits.mT, target))
    assert float(trainer.logged_metrics["val/loss"]) == pytest.approx(loss, rel=1e-5)


def test_masked_codes_after_others_are_filled_in() -> None:
    model, codes = make(FULL).eval(), CODES.flatten(1)[:2]
    told: list[int] = []
    sampled = model.sample(codes[:, :5], LABELS[:2], 11, sample=True, top_k=5, callback=told.append)
    assert told == list(range(11))
    assert torch.equal(sampled[:, :5], codes[:, :5]) and 0 <= sampled.min() <= sampled.max() < 20
    best = model.sample(codes[:, :15], LABELS[:2], 1)[:, 15]
    masked = torch.cat((LABELS[:2], codes[:, :15], torch.full((2, 1), 22)), dim=1)
    assert torch.equal(best, model.transformer(masked)[0][:, 16, :20].argmax(-1))


@pytest.mark.parametrize(
    ("gpt", "changes", "message"),
    [
        (TOLD, {"order": "spiral"}, "order: raster or permuter or random or annealed or null is"),
        ({}, {"order": "random"}, "set transformer_config.params.target_positions to true"),
        ({}, {"order": "permuter"}, "order: permuter needs a permuter_config"),
        (TOLD, {"order": "random", "permuter_config": SPIRAL}, "has one order, SpiralOut"),
        (
            {},
            {"order": "raster", "permuter_config": SPIRAL},
            "order is raster, but permuter_config",
        ),
        (TOLD, {"raster_share": 0.5}, "raster_share is for order: random or annealed"),
        (TOLD, {"order": "random", "anneal": [1, 3]}, "anneal is for order: annealed; leave it"),
        ({}, {"order": "raster", "anneal": [1, 3]}, "anneal is for order: annealed; leave it out"),
        (FULL, {"anneal": [1, 3]}, "anneal is for order: annealed; leave it out"),
        (TOLD, {"order": "random", "pkeep": 0.0}, "make pkeep 1, not 0.0"),
        (TOLD, {"order": "random", "teacher": "logs/x"}, "a teacher reads in one order"),
        (FULL, {"order": "random"}, "has no order; leave order"),
        (FULL, {"permuter_config": SPIRAL}, "has no order; leave order"),
        (FULL, {"pkeep": 0.9}, "masks codes instead of pkeep"),
        ({**FULL, "vocab_size": 20}, {}, "vocab_size at least 21, not 20"),
    ],
)
def test_what_does_not_fit(gpt: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(gpt, **changes)


def test_all_codes_of_a_masked_image_must_fit() -> None:
    model = make({**FULL, "block_size": 16})
    with pytest.raises(UserError, match="make it at least 17"):
        model.check_batch({"codes": CODES, "condition_codes": LABELS})


def test_published_orders_stay() -> None:
    spiral, raster = make({}, permuter_config=SPIRAL, order="permuter"), make({}, order="raster")
    assert not spiral.reading.any and not raster.reading.any
    assert spiral.transformer.target_emb is None
    logits, target = raster.train().predict(CODES.flatten(1), LABELS)
    assert torch.equal(target, CODES.flatten(1))
    assert torch.equal(logits, make().train().predict(CODES.flatten(1), LABELS)[0])

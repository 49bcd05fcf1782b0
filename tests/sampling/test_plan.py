from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from taming.command_line import Parser, add_flags, from_flags
from taming.errors import UserError
from taming.sampling import SampleSettings
from taming.sampling import plan as plans
from taming.sampling.plan import TOP_K, SamplingJob, SamplingPlan
from taming.sampling.sizes import add_side_flags
from tests.kit.models import tiny_model


@dataclass(frozen=True)
class Existing:
    """The same finished samples of every label."""

    numbers: frozenset[int] = frozenset()

    def finished(self, label: int | None) -> set[int]:
        return set(self.numbers)


def read(*flags: str, **defaults: Any) -> SamplingPlan:
    parser = Parser()
    add_flags(parser, SamplingPlan, **({"top_k": TOP_K} | defaults))
    add_side_flags(parser)
    return from_flags(SamplingPlan, parser.parse_args(flags))


def test_flags_are_the_fields() -> None:
    assert read() == SamplingPlan()
    assert read(top_k=5).settings.top_k == 5
    flags = ["-n", "3", "-k", "9", "-t", "0.5", "--classes", "4,0,", "--size", "10,12"]
    plan = read(*flags, "--seed", "7", "--reject-ratio", "0.5", "--classifier", "resnet18")
    assert plan == SamplingPlan(
        num_samples=3,
        settings=SampleSettings(temperature=0.5, top_k=9),
        seed=7,
        classes=(4, 0),
        size=(10, 12),
        reject_ratio=0.5,
        classifier="resnet18",
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-n", "99999999999999999999"], "at most 1,000,000,000 are made"),
        (["-n", "0"], "--num_samples must be at least 1"),
        (["-t", "0"], "must be above 0"),
        (["--reject_ratio", "0.5"], "needs both --reject_ratio below 1 and --classifier"),
        (["--classifier", "resnet18"], "needs both --reject_ratio below 1 and --classifier"),
        (["--reject_pool", "class"], "--reject_pool needs --reject_ratio below 1 and --classifier"),
        (["--reject_pool", "all"], "--reject_pool is group, class or a number"),
        (["--classes", "cat"], "--classes: a list takes numbers such as 0,1,7, not 'cat'"),
        (["--classes", ","], "--classes: the list of numbers is empty"),
        (["--size", "wide"], "--size: a size is height,width in pixels"),
    ],
)
def test_impossible_plans(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(*flags)


def test_descriptions_are_json() -> None:
    plan = SamplingPlan(
        num_samples=7,
        seed=3,
        classes=(1,),
        size=(10, None),
        reject_ratio=0.5,
        classifier="resnet18",
        base=("a.yaml",),
        overrides=("b=1",),
        dtype=torch.bfloat16,
        batch_size=8,
    )
    described = plan.describe()
    assert json.loads(json.dumps(described)) == described
    settings = {"temperature": 1.0, "top_k": 250, "top_p": 1.0, "guidance": 1.0}
    assert described == {
        **settings,
        "guidance_schedule": "constant",
        "order": None,
        "steps": None,
        "step_schedule": "cosine",
        "confidence_noise": 4.5,
        "num_samples": 7,
        "seed": 3,
        "classes": [1],
        "height": 10,
        "width": None,
        "reject_ratio": 0.5,
        "classifier": "resnet18",
        "reject_pool": "group",
        "pool": [1, 2],
        "base": ["a.yaml"],
        "overrides": ["b=1"],
        "precision": "bfloat16",
        "batch_size": 8,
    }
    assert SamplingPlan().describe() == {
        **settings,
        "guidance_schedule": "constant",
        "order": None,
        "steps": None,
        "step_schedule": "cosine",
        "confidence_noise": 4.5,
        "num_samples": 50_000,
        "seed": 0,
        "classes": None,
        "height": None,
        "width": None,
        "reject_ratio": 1.0,
        "classifier": None,
        "base": [],
        "overrides": [],
        "precision": "float32",
    }
    assert SamplingPlan(num_samples=10**9).num_samples == 10**9


def test_jobs_hand_on_all_of_their_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(plans, "sample_images", lambda *_, **options: given.append(options) or [])
    settings, model = SampleSettings(top_k=3), tiny_model()
    plan = SamplingPlan(num_samples=9, settings=settings, seed=3, dtype=torch.bfloat16)
    for compiled in (True, False):
        replace(plan, compiled=compiled).job(model, 4).samples(Existing().finished, print)
    shared = {"batch_size": 4, "seed": 3, "on_step": print, "shape": None, "filled": True}
    assert given == [{**shared, "compiled": True}, {**shared, "compiled": False}]
    job = replace(plan, dtype=torch.float32).job(model, 4)
    assert not job.rounds_by_batch and plan.job(model, 4).rounds_by_batch


def test_the_share_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert SamplingPlan(num_samples=9).job(tiny_model(), 4).share == (1, 2)
    assert SamplingPlan(num_samples=9).job(tiny_model(), 4, (0, 3)).share == (0, 3)


def test_rejection_takes_whole_groups() -> None:
    plan = SamplingPlan(num_samples=3, reject_ratio=0.4, classifier="resnet18")  # 2 of 5

    def job(rank: int, processes: int) -> SamplingJob:
        return SamplingJob(
            plan,
            tiny_model(),
            [1, 2],
            score=lambda images, _: images.mean((1, 2, 3)),
            share=(rank, processes),
        )

    alone = list(job(0, 1).samples(Existing().finished))
    made = [(s.label, s.number) for s in alone]
    assert made == [(label, number) for label in (1, 2) for number in range(3)]
    shared = [s for rank in range(2) for s in job(rank, 2).samples(Existing().finished)]
    assert sorted((s.label, s.number) for s in shared) == made
    assert job(0, 1).of_few_samples().batch_size == 25
    assert job(0, 2).of_few_samples().batch_size == 15
    assert replace(job(0, 2), score=None).of_few_samples().batch_size == 3
    assert replace(job(0, 4), score=None).of_few_samples().batch_size == 2
    # In bf16 it decides samples, and the number of processes does not.
    for share in ((0, 1), (0, 4)):
        alone = replace(job(*share), score=None)
        halves = replace(alone, plan=replace(alone.plan, dtype=torch.bfloat16))
        assert halves.of_few_samples().batch_size == 6


def test_jobs_share_a_plan() -> None:
    model, plan = tiny_model(), SamplingPlan(num_samples=3, classes=(4, 0), size=(10, 8), seed=2)
    alone = list(plan.job(model, batch_size=2).samples(Existing().finished))
    assert [(sample.label, sample.number) for sample in alone] == [
        (label, number) for label in (4, 0) for number in range(3)
    ]
    assert alone[0].image.shape == (3, 10, 8)
    shares = [
        list(plan.job(model, 4, share=(rank, 2)).samples(Existing(frozenset({1})).finished))
        for rank in range(2)
    ]
    together = {(s.label, s.number): s.indices for share in shares for s in share}
    expected = {(s.label, s.number): s.indices for s in alone if s.number != 1}
    assert together.keys() == expected.keys()
    assert all(torch.equal(together[key], expected[key]) for key in expected)

"""Sweeps of sampler settings: what a text means, and the rows of the table."""

from __future__ import annotations

from argparse import Namespace

import pytest

from taming.errors import UserError
from taming.evaluation.tasks import sweep
from taming.evaluation.tasks.sweep import parse_sweep, row, shown, start_of_sweep
from taming.sampling.plan import SamplingPlan


def test_settings_and_their_values() -> None:
    text = " top_k=50, 100 ; top_p=0.9;temperature=1,0.5,;guidance=1.5;"
    assert parse_sweep("reject_ratio=1,0.05") == {"acceptance": [1.0, 0.05]}
    swept = parse_sweep(text)
    assert swept == {
        "top_k": [50, 100],
        "top_p": [0.9],
        "temperature": [1.0, 0.5],
        "guidance": [1.5],
    }
    assert type(swept["top_k"][0]) is int and type(swept["temperature"][0]) is float


def test_mixtures_of_k() -> None:
    (values,) = parse_sweep("top_k=50, 50+100").values()
    assert values == [50, (50, 100)] and [shown(value) for value in values] == ["50", "50+100"]
    assert row({"top_k": (50, 100)}, {"fid": 3.0}) == {"top_k": "50+100", "fid": 3.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top_k=1.5", "top_k takes numbers"),
        ("top_k=1+", "top_k takes numbers"),
        ("top_k=5;top_p=", "--sweep top_p=: give at least one value"),
        (" ; ", "--sweep is empty"),
        ("seed=1", "--sweep has no 'seed'"),
    ],
)
def test_other_texts(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_sweep(text)


def test_a_sweep_over_the_acceptance_begins_with_a_plan_that_rejects() -> None:
    args = Namespace(classifier="resnet101", reject_ratio=1.0, reject_pool="class")
    start_of_sweep({"acceptance": [1.0, 0.25, 0.05]}, args)
    assert (args.reject_ratio, args.reject_pool) == (0.25, "class")
    start_of_sweep({"acceptance": [1.0]}, args)
    assert (args.reject_ratio, args.classifier, args.reject_pool) == (1.0, None, "group")
    args = Namespace(classifier="resnet101", reject_ratio=0.5)
    start_of_sweep({"top_k": [5]}, args)
    assert (args.reject_ratio, args.classifier) == (0.5, "resnet101")
    args = Namespace(classifier=None, reject_ratio=1.0)
    with pytest.raises(UserError, match="needs --classifier"):
        start_of_sweep({"acceptance": [0.5]}, args)


def test_no_classifier_is_asked_where_all_are_accepted() -> None:
    plan = SamplingPlan(4, reject_ratio=0.25, classifier="resnet101", reject_pool="class")
    found = [sweep._changed(plan, {"acceptance": ratio, "top_k": 7}) for ratio in (1.0, 0.5)]
    assert [one.classifier for one in found] == [None, "resnet101"]
    assert [one.reject_ratio for one in found] == [1.0, 0.5]
    assert [(one.reject_pool, one.group) for one in found] == [("group", (1, 1)), ("class", (4, 8))]
    assert {one.settings.top_k for one in found} == {7}
    assert sweep._changed(plan, {"top_k": 7}).classifier == "resnet101"


def test_rows_leave_out_deviations() -> None:
    metrics = {"fid": 3.0, "isc": {"mean": 5.0, "std": 0.1}, "prc": {"recall": 0.5}}
    assert row({"top_k": 50}, metrics) == {"top_k": 50, "fid": 3.0, "isc": 5.0, "prc.recall": 0.5}

"""Sweeps of sampler settings: what a text means, and the rows of the table."""

from __future__ import annotations

import pytest

from taming.errors import UserError
from taming.evaluation.tasks.sweep import parse_sweep, row, shown


def test_settings_and_their_values() -> None:
    text = " top_k=50, 100 ; top_p=0.9;temperature=1,0.5,;guidance=1.5;"
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


def test_rows_leave_out_deviations() -> None:
    metrics = {"fid": 3.0, "isc": {"mean": 5.0, "std": 0.1}, "prc": {"recall": 0.5}}
    assert row({"top_k": 50}, metrics) == {"top_k": 50, "fid": 3.0, "isc": 5.0, "prc.recall": 0.5}

from __future__ import annotations

import pytest

from taming.errors import UserError
from taming.sampling import Request, labels_for, requests_for
from taming.sampling.requests import parse_classes
from tests.sampling.tiny import tiny_model, transformer_config

UNCONDITIONAL = {"cond_stage_config": "__is_unconditional__", "sos_token": 2}
COORD = {
    "cond_stage_key": "coord",
    "cond_stage_config": {
        "target": "taming.modules.misc.coord.CoordStage",
        "params": {"n_embed": 20, "down_factor": 2},
    },
}


def test_class_lists() -> None:
    assert parse_classes(None) is None
    assert parse_classes("3, 1,3,") == [3, 1]
    for wrong in ("a", "1.5", "-1", "1;2"):
        with pytest.raises(UserError, match="is none"):
            parse_classes(wrong)
    with pytest.raises(UserError, match="names no class"):
        parse_classes(",")


def test_all_classes_or_the_given_ones() -> None:
    model = tiny_model()
    assert labels_for(model) == [0, 1, 2, 3, 4]
    assert labels_for(model, [4, 0]) == [4, 0]
    with pytest.raises(UserError, match="class 5 is out of range: the model has classes 0 to 4"):
        labels_for(model, [1, 5])


def test_unconditional_models_have_no_classes() -> None:
    model = tiny_model(transformer_config(**UNCONDITIONAL))
    assert labels_for(model) == [None]
    with pytest.raises(UserError, match="unconditional"):
        labels_for(model, [0])
    assert list(requests_for(model, [None], 1)) == [Request(0, (2,), None)]


def test_other_conditions_need_another_script() -> None:
    with pytest.raises(UserError, match="given 'coord'.*make_samples"):
        labels_for(tiny_model(transformer_config(**COORD)))


def test_finished_samples_are_left_out() -> None:
    requests = requests_for(tiny_model(), [4, 0], 3, lambda label: {1} if label == 4 else {0, 2})
    assert list(requests) == [Request(0, (4,), 4), Request(2, (4,), 4), Request(1, (0,), 0)]


def test_classes_share_no_random_numbers() -> None:
    requests = requests_for(tiny_model(), [0, 1, 2], 4)
    assert len({request.stream for request in requests}) == 12

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from taming.errors import UserError
from taming.sampling import (
    Request,
    SampleSettings,
    labels_for,
    requests_for_labels,
    sample_images,
)
from taming.sampling.requests import (
    condition_indices,
    request_for_condition,
    sampling_script,
)
from tests.kit.models import scene_config, tiny_model, transformer_config

UNCONDITIONAL = {"cond_stage_config": "__is_unconditional__", "sos_token": 2}
COORD = {
    "cond_stage_key": "coord",
    "cond_stage_config": {
        "target": "taming.modules.misc.coord.CoordStage",
        "params": {"n_embed": 20, "down_factor": 2},
    },
}


def test_all_classes_or_the_given_ones() -> None:
    model = tiny_model()
    assert labels_for(model) == [0, 1, 2, 3, 4]
    assert labels_for(model, [4, 0]) == [4, 0]
    with pytest.raises(UserError, match="class 5 is out of range: the model has classes 0 to 4"):
        labels_for(model, [1, 5])
    with pytest.raises(UserError, match="class -1 is out of range"):
        labels_for(model, [-1])


def test_unconditional_models_have_no_classes() -> None:
    model = tiny_model(transformer_config(**UNCONDITIONAL))
    assert labels_for(model) == [None]
    with pytest.raises(UserError, match="has no classes"):
        labels_for(model, [0])
    assert list(requests_for_labels(model, [None], 1)) == [Request(0, (2,), None)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([3, 99], "class 99 is out of range: the model has classes 0 to 4"),
        ([-1], "class -1 is out of range"),
        ([None], "a class, from 0 to 4, is a whole number, not None"),
        (["cat"], "is a whole number, not 'cat'"),
        ([True], "is a whole number, not True"),
        ([1.5], "is a whole number, not 1.5"),
        ("34", "labels is a list of classes, such as .*, not '34'"),
        (3, "labels is a list of classes, .* not 3"),
    ],
)
def test_labels_from_python_are_those_of_the_model(labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(requests_for_labels(tiny_model(), labels, 1))
    without = tiny_model(transformer_config(**UNCONDITIONAL))
    with pytest.raises(UserError, match="no classes.*labels=.None.|labels is a list"):
        next(requests_for_labels(without, [0] if labels == [None] else labels, 1))


def test_labels_and_counts_of_other_types() -> None:
    model = tiny_model()
    for labels in (torch.tensor([3, 4]), np.array([3, 4]), range(3, 5), (3, np.int64(4))):
        made: Any = list(requests_for_labels(model, labels, np.int64(1)))  # type: ignore[arg-type]
        assert made == [Request(0, (3,), 3), Request(0, (4,), 4)]
        assert all(type(one.label) is int for one in made)
    for count, message in ((-1, "num_samples is -1"), (1.5, "num_samples is a whole number")):
        with pytest.raises(UserError, match=message):
            next(requests_for_labels(model, [3], count))  # type: ignore[arg-type]


def test_other_conditions_need_another_script() -> None:
    maps = {"cond_stage_config": "__is_first_stage__", "cond_stage_key": "sketch"}
    with pytest.raises(UserError, match="given 'sketch'.*use scripts/make_samples.py"):
        labels_for(tiny_model(transformer_config(**maps)))
    scenes = tiny_model(transformer_config(**scene_config(block_size=64)))
    with pytest.raises(UserError, match="given 'objects_bbox'.*use scripts/make_scene_samples.py"):
        labels_for(scenes)
    for model in (tiny_model(), tiny_model(transformer_config(**UNCONDITIONAL))):
        assert sampling_script(model) == "sample_fast"


def test_coordinates_of_an_item_are_those_of_its_crop() -> None:
    model = tiny_model(transformer_config(**COORD))
    c = torch.linspace(0.5, 0.6, 64).view(1, 1, 8, 8)
    request = request_for_condition(model, c, 0, (4, 4))
    assert isinstance(request.condition, Tensor)
    assert torch.equal(request.condition, condition_indices(model, c)[0])
    whole = request_for_condition(model, None, 0, (4, 4)).condition
    assert isinstance(whole, Tensor) and not torch.equal(whole, request.condition)


def test_coordinates_are_known_for_every_size() -> None:
    gpt = transformer_config()["params"]["transformer_config"]
    gpt["params"]["block_size"] = 32
    model = tiny_model(transformer_config(**COORD, transformer_config=gpt))
    assert labels_for(model) == [None]
    request = next(requests_for_labels(model, [None], 1, shape=(6, 5)))
    expected = (torch.arange(120).view(12, 10) / 120).view(6, 2, 5, 2).mean((1, 3)) * 20
    assert isinstance(request.condition, Tensor)
    assert torch.equal(request.condition, expected.round().long())
    sample = next(sample_images(model, [request], shape=(6, 5)))
    assert sample.image.shape == (3, 12, 10)


def test_processes_share_the_samples() -> None:
    model = tiny_model()
    for block in (1, 2):
        shares = [
            list(requests_for_labels(model, [4, 0], 5, share=(rank, 3), block=block))
            for rank in range(3)
        ]
        together = [(r.label, r.number) for share in shares for r in share]
        assert len(together) == 10
        assert set(together) == {(label, n) for label in (0, 4) for n in range(5)}
        assert max(map(len, shares)) <= 5
    done = list(requests_for_labels(model, [4], 6, finished=lambda label: {0, 1, 2}, share=(1, 2)))
    assert [r.number for r in done] == [3, 5]
    for labels, count in (([4, 0, 2], 1), ([4, 0, 2], 2)):  # every process has work
        for rank in range(3 * count):
            share = requests_for_labels(model, labels, count, share=(rank, 3 * count))
            assert len(list(share)) == 1


def test_finished_samples_are_left_out() -> None:
    requests = requests_for_labels(
        tiny_model(), [4, 0], 3, finished=lambda label: {1} if label == 4 else {0, 2}
    )
    assert list(requests) == [Request(0, (4,), 4), Request(2, (4,), 4), Request(1, (0,), 0)]


def test_classes_share_no_random_numbers() -> None:
    requests = requests_for_labels(tiny_model(), [0, 1, 2], 4)
    assert len({request.stream for request in requests}) == 12
    assert Request(7, (3,), 3).stream == 3 * 2**32 + 7


def test_known_indices_are_in_the_request_of_every_condition() -> None:
    known, shape = torch.full((4, 4), -1), (4, 4)
    maps = {"cond_stage_config": "__is_first_stage__", "cond_stage_key": "sketch"}
    for changes, c in (
        (UNCONDITIONAL, None),
        (COORD, None),
        (maps, torch.zeros(1, 3, 8, 8)),
        ({}, torch.tensor([3])),
    ):
        model = tiny_model(transformer_config(**changes))
        request = request_for_condition(model, c, 2, shape, known)
        assert request.known is known and request.number == 2
        is_map = isinstance(request.condition, Tensor)
        assert is_map or request.condition == (2 + (c is not None),)
        assert is_map is (changes in (COORD, maps))
        assert request.label == (3 if changes == {} else None)


def test_sampling_takes_requests_and_settings_of_their_types() -> None:
    model = tiny_model()
    with pytest.raises(UserError, match="requests are made by requests_for_labels.*; 3 is none"):
        next(sample_images(model, [3, 7]))  # type: ignore[list-item]
    with pytest.raises(UserError, match="batch_size is 0; it must be at least 1"):
        next(sample_images(model, requests_for_labels(model, [3], 1), batch_size=0))
    wrong: dict[str, Any] = {"temperature": "1", "top_p": None, "guidance": "2", "top_k": 2.5}
    for name, value in wrong.items():
        with pytest.raises(UserError, match=f"{name} is a .*number.*, not {value!r}"):
            SampleSettings(**{name: value})
    assert SampleSettings(top_k=np.int64(5)).top_ks == (5,)  # type: ignore[arg-type]

"""Which results of `log_images` are pictures."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from taming.errors import UserError
from taming.training import logged_pictures
from taming.training.logged_pictures import pictures_of
from tests.kit.datasets import images

HWC = images(3, 3, 4, 6)  # (3, 4, 6, 3)
CHW = HWC.permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "value",
    [
        CHW,
        CHW.numpy(),
        HWC,
        HWC.numpy(),
        list(CHW),
        [image.numpy() for image in HWC],
        CHW.to_sparse(),
        CHW.double().requires_grad_(),
    ],
)
def test_pictures_in_any_form_are_taken(value: Any) -> None:
    taken = pictures_of({"a": value, "none": CHW[:0]}, "own", 2)
    assert taken.keys() == {"a"} and not taken["a"].requires_grad
    torch.testing.assert_close(taken["a"], CHW[:2])


def test_bytes_are_values() -> None:
    taken = pictures_of({"a": torch.tensor([0, 255], dtype=torch.uint8).expand(2, 3, 2, 2)}, "", 2)
    assert taken["a"][..., 0].unique().tolist() == [-1.0] and taken["a"].max() == 1


@pytest.mark.parametrize("result", [None, CHW, [CHW], ({"a": CHW}, 1)])
def test_results_that_are_no_pictures_by_name(result: Any) -> None:
    with pytest.raises(UserError, match="own must return pictures by name, .*; it returned"):
        pictures_of(result, "own", 2)


@pytest.mark.parametrize(
    "value",
    [None, "x", CHW[0, 0], CHW[0], CHW[None], torch.ones(()), CHW + 1j, CHW[:, :2], [CHW, None]],
)
def test_entries_that_are_no_pictures(value: Any) -> None:
    with pytest.raises(UserError, match="own must return pictures by name, .*; its 'a' is"):
        pictures_of({"a": value}, "own", 2)


@pytest.mark.parametrize("key", [1, "a\0b"])
def test_names_are_those_of_files(key: Any) -> None:
    with pytest.raises(UserError, match="own must return pictures by name"):
        pictures_of({key: CHW}, "own", 2)


def test_values_that_were_not_scaled_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    logged_pictures._warn.cache_clear()
    for scale in (2, 127, 128):
        pictures_of({"a": CHW.abs() * scale}, "own", 2)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("'a' of own has values beyond 10")
